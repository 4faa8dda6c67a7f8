"""What is counted in training and evaluation: sums on the device, reduced over ranks, read late.

Never averages of averages: counts and sums are added up, and divided once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.world import World

TOP_K = 5


@dataclass(frozen=True)
class Sums:
    """Sums over images: of the loss, of those ranked first and within the first five, their number.

    And over ranks: of requests to stop, and of bad images that were met.
    """

    loss: float
    top1: float
    top5: float
    count: float
    stop: float = 0.0
    bad: float = 0.0

    def __add__(self, other: "Sums") -> "Sums":
        """Add up two disjoint sets of images."""
        return Sums(*(getattr(self, k) + getattr(other, k) for k in self.__dataclass_fields__))

    def means(self) -> dict[str, float]:
        """Return loss, top1 and top5 as means over the images."""
        n = max(self.count, 1.0)
        return {"loss": self.loss / n, "top1": self.top1 / n, "top5": self.top5 / n}


def no_sums(world: World) -> Tensor:
    """Return float64 [6] zeros on the device, in the order of `Sums`."""
    return torch.zeros(len(fields(Sums)), dtype=torch.float64, device=world.device)


def batch_sums(logits: Tensor, labels: Tensor, loss_sum: Tensor | None = None) -> Tensor:
    """Return float64 [6] on the device: loss, top-1, top-5, images, and two zeros; see `Sums`.

    Args:
        logits: [batch, classes].
        labels: int64 [batch].
        loss_sum: the loss summed over the batch; None: plain cross-entropy, as evaluation uses.
    """
    logits = logits.detach()
    if loss_sum is None:
        loss_sum = F.cross_entropy(logits.float(), labels, reduction="sum")
    ranked = logits.topk(min(TOP_K, logits.shape[1]), dim=1).indices == labels[:, None]
    top1, top5 = ranked[:, 0].sum(), ranked.any(1).sum()
    count = torch.full_like(top1, labels.shape[0])
    zero = torch.zeros_like(top1)
    return torch.stack([x.to(torch.float64) for x in (loss_sum.detach(), top1, top5, count, zero, zero)])


def score(val: Mapping[str, float]) -> float:
    """Return what evaluations are ranked by: top-1, of the averaged weights where there are some."""
    return val.get("ema_top1", val.get("top1", -1.0))


class Late:
    """Reads each step's sums one step later, so that the device is never waited for."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._pending: tuple[int, Callable[[], Tensor]] | None = None

    def push(self, step: int, sums: Tensor, stop: bool, bad: int = 0) -> tuple[int, Sums] | None:
        """Start reducing the sums of the step that makes `step` steps done, with this rank's wish to stop and new bad images.

        Returns what `pop` returns: the step before, which has had a whole step of time to arrive.
        """
        if stop:
            sums[4] = 1.0
        if bad:
            sums[5] = bad
        before = self.pop()
        self._pending = step, self._world.sum_later(sums)
        return before

    def pop(self) -> tuple[int, Sums] | None:
        """Return the steps done and the sums still on their way, if any; the same on every rank."""
        if self._pending is None:
            return None
        step, wait = self._pending
        self._pending = None
        return step, Sums(*wait().tolist())
