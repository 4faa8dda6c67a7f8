"""Evaluation: every validation image counted exactly once, whatever the number of processes."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from pipeline.config.schema import Eval
from pipeline.data.loader import Batch, Normalize
from pipeline.errors import DataError
from pipeline.train.metrics import Sums, batch_sums, no_sums
from pipeline.world import World


class BothViews(nn.Module):
    """A network that averages the logits of each image and of its mirror image."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap a network."""
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [batch, classes] of images [batch, 3, height, width]."""
        logits: Tensor = self.network(images) + self.network(images.flip(3))
        return logits / 2


def views(model: nn.Module, cfg: Eval) -> nn.Module:
    """Return the network to evaluate, with the test-time augmentation that is asked for."""
    return BothViews(model) if cfg.flip else model


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    normalize: Normalize,
    *,
    world: World,
    expected: Callable[[], int],
    autocast: torch.dtype | None = None,
) -> dict[str, float]:
    """Return `loss` (cross-entropy), `top1`, `top5` (fractions) and `count` over all ranks' batches.

    Ranks need not have the same number of batches: nothing is exchanged before the end.

    Raises:
        DataError: if the images counted are not exactly as many as `expected` says when all batches are done.
    """
    training = [m for m in model.modules() if m.training]
    model.eval()
    total = no_sums(world)
    for batch in batches:
        with torch.autocast(world.device.type, dtype=autocast, enabled=autocast is not None):
            logits = model(normalize(batch.images))
        total += batch_sums(logits, batch.labels)
    sums = Sums(*world.sum_(total).tolist())
    for module in training:
        module.training = True
    good = expected()
    if sums.count != good:
        raise DataError(f"evaluation counted {sums.count:.0f} images instead of {good}; the index does not fit the data")
    return {**sums.means(), "count": sums.count}
