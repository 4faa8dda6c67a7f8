"""Which share of each image and label a micro-batch keeps when it is mixed, and CutMix's rectangle: numpy, pure.

Out of scope: mixing (`recipe.mix`, on the device).
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv

from pipeline.config.sections import Mix
from pipeline.data import order


@dataclass(frozen=True)
class Mixing:
    """How a micro-batch is mixed: each image keeps `share`; `box` (top, left, bottom, right) is CutMix's, None for mixup."""

    share: float
    box: tuple[int, int, int, int] | None


def choose(cfg: Mix, position: int, *, seed: int, epoch: int, size: int) -> Mixing | None:
    """Draw how the micro-batch that starts at `position` of an epoch is mixed, of `size` pixels a side; None: not at all.

    One draw for a micro-batch, whichever rank has it. The rectangle's area gives the share that labels keep.

    Source: torchvision.transforms.v2.MixUp and CutMix.
    """
    if not cfg.on:
        return None
    numbers = order.draws(np.array([position]), seed, epoch, order.Stream.MIX, 5)[0].tolist()
    if numbers[0] >= cfg.prob:
        return None
    cut = cfg.cutmix > 0 and (cfg.mixup == 0 or numbers[1] < cfg.switch_prob)
    alpha = cfg.cutmix if cut else cfg.mixup
    share = float(betaincinv(alpha, alpha, numbers[2]))  # inverse of the Beta distribution's function
    if not cut:
        return Mixing(share, None)
    half = int(0.5 * math.sqrt(1 - share) * size)
    x, y = int(numbers[3] * size), int(numbers[4] * size)
    top, left, bottom, right = max(y - half, 0), max(x - half, 0), min(y + half, size), min(x + half, size)
    return Mixing(1 - (bottom - top) * (right - left) / size**2, (top, left, bottom, right))
