"""Mixup and CutMix of a batch on its device, with shares and rectangles that were drawn elsewhere.

Out of scope: random numbers; what is mixed how is in the batch's plan.
"""

import torch.nn.functional as F
from torch import Tensor

Box = tuple[int, int, int, int]


def mix(images: Tensor, labels: Tensor, share: float, box: Box | None, classes: int) -> tuple[Tensor, Tensor]:
    """Mix each image with the one before it (the first with the last), and the labels by the same share.

    Args:
        images: float [B, 3, S, S]; changed in place.
        labels: int64 [B].
        share: what is left of each image and its label, 0 to 1.
        box: top, left, bottom, right of the rectangle that CutMix takes from the partner. None: mixup.
        classes: number of classes.

    Returns:
        The images, and float [B, classes] targets.

    Source: Zhang et al. 2018, equation 1 (mixup, https://arxiv.org/abs/1710.09412); Yun et al. 2019, equation 1
    (CutMix, https://arxiv.org/abs/1905.04899).
    """
    if box is None:
        images.lerp_(images.roll(1, 0), 1 - share)
    else:
        top, left, bottom, right = box
        images[:, :, top:bottom, left:right] = images.roll(1, 0)[:, :, top:bottom, left:right]
    hot = F.one_hot(labels, classes).to(images.dtype)
    return images, hot.lerp(hot.roll(1, 0), 1 - share)
