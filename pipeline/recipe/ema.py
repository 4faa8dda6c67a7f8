"""The exponential moving average of weights: what is averaged and when."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.config import Plan
from pipeline.config.sections import Ema


class Average:
    """A copy of a network whose weights follow those of the original slowly.

    `model` is the copy. Batch norm's running averages are averaged the same way; they are handed in, as while
    training they are not in the layers' buffers.

    Source: Polyak & Juditsky 1992; decay and interval as in torchvision's reference training.
    """

    def __init__(self, cfg: Ema, plan: Plan, model: nn.Module, buffers: Sequence[str]) -> None:
        """Copy `model`; `buffers` names its running averages."""
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._ours = [*self.model.parameters(), *map(self.model.get_buffer, buffers)]
        self._keep, self._every = cfg.keep or 0.0, cfg.every
        self._warmup = cfg.warmup.steps(plan.steps_per_epoch, plan.total_steps)

    @torch.no_grad()
    def update(self, step: int, model: nn.Module, buffers: Sequence[Tensor]) -> None:
        """Move the average after the optimiser step that makes `step` steps done; a warm-up follows the weights exactly."""
        if step % self._every and step > self._warmup:
            return
        theirs = [*(p.detach() for p in model.parameters()), *buffers]
        if step <= self._warmup:
            torch._foreach_copy_(self._ours, theirs)
        else:
            torch._foreach_lerp_(self._ours, theirs, 1 - self._keep)


def build(cfg: Ema, plan: Plan, model: nn.Module, buffers: Sequence[str]) -> Average | None:
    """Return the average that the configuration asks for, if any; it starts as `model` is now."""
    return Average(cfg, plan, model, buffers) if cfg.keep is not None else None
