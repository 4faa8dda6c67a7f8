"""Which images an evaluation gets wrong: the confusion matrix and the worst errors, found while it runs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.data.loader import Batch
from pipeline.world import World

WORST = 16
MOST_CLASSES = 2000
"""Above this many classes the confusion matrix would take more memory than it is worth, and there is none."""


@dataclass(frozen=True)
class Error:
    """A validation image that was taken for another class."""

    sample: int
    label: int
    predicted: int
    loss: float


@dataclass(frozen=True)
class Examined:
    """What an evaluation got wrong.

    Attributes:
        confusion: int64 [classes, classes] on the CPU, images by true and by predicted class; None for too many classes.
        worst: the `WORST` errors with the highest loss, highest first.
    """

    confusion: Tensor | None
    worst: tuple[Error, ...]


class Watch(nn.Module):
    """The network to evaluate, remembering what it answers; the batches go through `over`.

    A network that is asked more than once about a batch (test-time augmentation) is judged by the mean of its logits.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self._logits: Tensor | None = None
        self._asked = 0
        self._seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's logits, [batch, classes]."""
        logits: Tensor = self.model(images)
        self._logits = logits.float() if self._logits is None else self._logits + logits.float()
        self._asked += 1
        return logits

    def over(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches; when the next one is asked for, the answers to the last are taken in."""
        for batch in batches:
            yield batch
            if self._logits is not None:
                ids = torch.from_numpy(batch.ids).to(batch.labels.device, non_blocking=True)
                self._seen.append(_judge(self._logits / self._asked, batch.labels, ids))
            self._logits, self._asked = None, 0

    @torch.inference_mode()
    def result(self, world: World, classes: int) -> Examined:
        """Return what all ranks' batches come to, the same on every rank."""
        seen = torch.cat(self._seen) if self._seen else torch.zeros(0, 4, dtype=torch.float64, device=world.device)
        confusion = None
        if classes <= MOST_CLASSES:
            places = (seen[:, 1] * classes + seen[:, 2]).long()
            confusion = world.sum_(torch.bincount(places, minlength=classes * classes)).view(classes, classes).cpu()
        return Examined(confusion, _worst(seen, world))


def _judge(logits: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
    """Return float64 [batch, 4]: sample, label, predicted class, loss."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    return torch.stack([x.to(torch.float64) for x in (ids, labels, logits.argmax(dim=1), losses)], dim=1)


def _worst(seen: Tensor, world: World) -> tuple[Error, ...]:
    """Return the worst errors of all ranks; each rank puts its own into its rows of a table that is summed."""
    wrong = seen[seen[:, 1] != seen[:, 2]]
    wrong = wrong[torch.isfinite(wrong[:, 3])]
    mine = wrong[wrong[:, 3].argsort(descending=True)[:WORST]]
    table = torch.zeros(world.size, WORST, 4, dtype=torch.float64, device=world.device)
    table[world.rank, : len(mine)] = mine
    rows = [row for row in world.sum_(table).view(-1, 4).tolist() if row[1] != row[2]]
    rows.sort(key=lambda row: (-row[3], row[0]))
    return tuple(Error(int(sample), int(label), int(predicted), loss) for sample, label, predicted, loss in rows[:WORST])
