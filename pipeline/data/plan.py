"""What happens to each image of a batch: its crop, the size it is resized to, its flip."""

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pipeline.config.schema import Data, Eval
from pipeline.data import order
from pipeline.data.augment import Choices
from pipeline.data.index import Index
from pipeline.data.mixing import Mixing

Floats: TypeAlias = NDArray[np.float64]
Int32s: TypeAlias = NDArray[np.int32]

_ATTEMPTS = 10  # Source: torchvision.transforms.RandomResizedCrop.get_params


@dataclass(frozen=True)
class BatchPlan:
    """What an executor does for a batch of B images; lengths in pixels, of the stored image (EXIF rotation ignored).

    Attributes:
        ids: int64[B], sample numbers in the index.
        labels: int64[B].
        boxes: int32[B, 4], top, left, height, width of the part of the image that is used.
        resized: int32[B, 2], height and width that the box is resized to.
        offsets: int32[B, 2], top and left of the output square in the resized box.
        flip: bool[B], whether the output is mirrored left to right.
        size: side of the output square.
        bicubic: whether resizing is bicubic instead of bilinear.
        choices: how the images are augmented; None: not at all.
        mixing: how the batch is mixed on the device; None: not at all.
    """

    ids: order.Ints
    labels: order.Ints
    boxes: Int32s
    resized: Int32s
    offsets: Int32s
    flip: NDArray[np.bool_]
    size: int
    bicubic: bool = False
    choices: Choices | None = None
    mixing: Mixing | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)


def train_plan(index: Index, data: Data, ids: order.Ints, positions: order.Ints, *, seed: int, epoch: int) -> BatchPlan:
    """Plan random resized crops and flips for samples `ids` (int64[B]) that stand at `positions` (int64[B]) of an epoch."""
    heights, widths = _sizes(index, ids)
    numbers = order.draws(positions, seed, epoch, order.Stream.CROP, 4 * _ATTEMPTS).reshape(len(ids), _ATTEMPTS, 4)
    return BatchPlan(
        ids=ids,
        labels=index.labels[ids].astype(np.int64),
        boxes=random_boxes(heights, widths, numbers, data.crop_scale, data.crop_ratio),
        resized=np.full((len(ids), 2), data.resolution, np.int32),
        offsets=np.zeros((len(ids), 2), np.int32),
        flip=order.draws(positions, seed, epoch, order.Stream.FLIP, 1)[:, 0] < data.flip,
        size=data.resolution,
        bicubic=data.interpolation == "bicubic",
    )


def eval_plan(index: Index, evaluation: Eval, ids: order.Ints, *, bicubic: bool = False) -> BatchPlan:
    """Plan the central square of samples `ids` (int64[B]), their shorter side resized.

    Source: torchvision.transforms.functional `_compute_resized_output_size` (the longer side is truncated)
    and `center_crop` (the offset is rounded half to even).
    """
    heights, widths = _sizes(index, ids)
    short, long = np.minimum(heights, widths), np.maximum(heights, widths)
    resized_long = (evaluation.resize * long / short).astype(np.int32)
    upright = heights >= widths
    resized = np.stack(
        [np.where(upright, resized_long, evaluation.resize), np.where(upright, evaluation.resize, resized_long)], axis=1
    ).astype(np.int32)
    zeros = np.zeros_like(heights)
    return BatchPlan(
        ids=ids,
        labels=index.labels[ids].astype(np.int64),
        boxes=np.stack([zeros, zeros, heights, widths], axis=1).astype(np.int32),
        resized=resized,
        offsets=np.rint((resized - evaluation.crop) / 2).astype(np.int32),
        flip=np.zeros(len(ids), np.bool_),
        size=evaluation.crop,
        bicubic=bicubic,
    )


def random_boxes(
    heights: order.Ints, widths: order.Ints, numbers: Floats, scale: tuple[float, float], ratio: tuple[float, float]
) -> Int32s:
    """Return int32[B, 4] (top, left, height, width) from image sizes int64[B] and random numbers float64[B, attempts, 4].

    The first attempt whose box fits the image counts; where none does, the largest central box with an allowed ratio.

    Source: torchvision.transforms.RandomResizedCrop.get_params; Szegedy et al., "Going deeper with convolutions",
    section 6 (arXiv 1409.4842).
    """
    share = scale[0] + (scale[1] - scale[0]) * numbers[..., 0]
    log_ratio = math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * numbers[..., 1]
    area, aspect = (heights * widths)[:, None] * share, np.exp(log_ratio)
    box_h, box_w = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits: NDArray[np.bool_] = (box_w > 0) & (box_w <= widths[:, None]) & (box_h > 0) & (box_h <= heights[:, None])
    rows, first = np.arange(len(heights)), fits.argmax(axis=1)
    box_h, box_w = box_h[rows, first], box_w[rows, first]
    top = np.floor(numbers[rows, first, 2] * (heights - box_h + 1))
    left = np.floor(numbers[rows, first, 3] * (widths - box_w + 1))
    boxes = np.stack([top, left, box_h, box_w], axis=1)
    return np.where(np.any(fits, axis=1, keepdims=True), boxes, _central_boxes(heights, widths, ratio)).astype(np.int32)


def _central_boxes(heights: order.Ints, widths: order.Ints, ratio: tuple[float, float]) -> Floats:
    aspect = widths / heights
    # At least one pixel: torchvision's own fallback comes to none for images one pixel wide and ratios above two.
    box_h = np.where(aspect < ratio[0], np.maximum(1, np.rint(widths / ratio[0])), heights)
    box_w = np.where(aspect > ratio[1], np.maximum(1, np.rint(heights * ratio[1])), widths)
    return np.stack([(heights - box_h) // 2, (widths - box_w) // 2, box_h, box_w], axis=1)


def _sizes(index: Index, ids: order.Ints) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return heights and widths as int64[B], wide enough for areas."""
    return index.heights[ids].astype(np.int64), index.widths[ids].astype(np.int64)
