"""Running statistics of batch norm that do not depend on how many processes share a step.

Every layer normalises by its own micro-batch as usual; only the running averages, which
evaluation uses, are gathered here.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.world import World


class StepStatistics:
    """Moves the running averages once a step, by the mean over all the step's micro-batches.

    Left alone, a layer moves its averages once for each forward pass, so one process with four
    micro-batches and four processes with one each would end with different averages. Here
    each pass leaves its plain statistics in the layer's buffers (momentum 1), they are summed over
    passes and ranks, and the averages move by the layer's momentum once a step. With one process
    and one micro-batch a step this is what the layer does by itself.
    """

    def __init__(self, model: nn.Module) -> None:
        tracking = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats}
        # Left to themselves: momentum None, a cumulative average over all passes, and frozen layers, which do not move.
        moving = {n: m for n, m in tracking.items() if m.momentum is not None and m.training}
        self._layers = [(m, float(m.momentum)) for m in moving.values() if m.momentum is not None]
        self.names = [f"{n}.{buffer}" for n in moving for buffer in ("running_mean", "running_var")]
        self._buffers = [b for m, _ in self._layers for b in (m.running_mean, m.running_var) if b is not None]
        self._sizes = [b.numel() for b in self._buffers]
        if self._layers:
            self._average = torch.cat(self._buffers)
            self._sum = torch.zeros_like(self._average)
            momenta = [momentum for _, momentum in self._layers for _ in range(2)]
            self._momentum = torch.cat([torch.full_like(b, p) for b, p in zip(self._buffers, momenta, strict=True)])
        self._passes = 0

    def averages(self) -> list[Tensor]:
        """Return the averages as they are while training, in the order of `names`."""
        return list(torch.split(self._average, self._sizes)) if self._layers else []

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Hold the averages in the layers for the time of the `with` block, for evaluation or saving."""
        self.end_training()
        yield
        self.start_training()

    def start_training(self) -> None:
        """Take the averages over from the layers and let each pass leave its plain statistics there."""
        if self._layers:
            torch.cat(self._buffers, out=self._average)
        for layer, _ in self._layers:
            layer.momentum = 1.0

    def after_pass(self) -> None:
        """Add what the forward pass left in the layers."""
        if self._layers:
            self._sum += torch.cat(self._buffers)
        self._passes += 1

    def after_step(self, world: World) -> None:
        """Move the averages by the mean over all passes of the step on all ranks."""
        if self._layers:
            mean = world.sum_(self._sum).div_(self._passes * world.size)
            self._average.lerp_(mean, self._momentum)
            self._sum.zero_()
        self._passes = 0

    def end_training(self) -> None:
        """Put the averages and each layer's own momentum back, for evaluation or saving."""
        if self._layers:
            torch._foreach_copy_(self._buffers, list(torch.split(self._average, self._sizes)))
        for layer, momentum in self._layers:
            layer.momentum = momentum
