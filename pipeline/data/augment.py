"""Which operations augment each image of a batch, and with what strength: numpy, pure, from a position's random numbers.

Out of scope: carrying them out (`pixels` on the CPU, `tensors` on a GPU).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from pipeline.config.sections import Augment
from pipeline.data import order
from pipeline.data.order import Ints

Floats = NDArray[np.float64]
_ATTEMPTS = 10  # Source: torchvision.transforms.RandomErasing.get_params
_ERASE_SCALE, _ERASE_RATIO = (0.02, 0.33), (0.3, 3.3)  # Source: torchvision.transforms.RandomErasing, defaults


class Op(IntEnum):
    """An operation on one image, with the unit of its value."""

    IDENTITY = 0
    SHEAR_X = 1  # pixels across for each pixel down
    SHEAR_Y = 2
    TRANSLATE_X = 3  # pixels
    TRANSLATE_Y = 4
    ROTATE = 5  # degrees
    BRIGHTNESS = 6  # factor; 1 changes nothing
    COLOR = 7
    CONTRAST = 8
    SHARPNESS = 9
    POSTERIZE = 10  # bits kept
    SOLARIZE = 11  # values from here on are inverted
    SOLARIZE_ADD = 12  # added to values below 128
    AUTOCONTRAST = 13
    EQUALIZE = 14
    INVERT = 15
    HUE = 16  # turns of the colour circle


@dataclass(frozen=True)
class Choices:
    """What is done to each of B images of a batch, in order.

    Attributes:
        ops: int64[B, K], `Op`s.
        values: float64[B, K], each in its operation's unit.
        erase: int32[B, 4], top, left, height, width of the rectangle set to the mean colour; height 0 for none.
        fill: colour of empty corners, 0-255.
        mean: colour that erases, 0-255.
    """

    ops: Ints
    values: Floats
    erase: NDArray[np.int32]
    fill: tuple[int, int, int]
    mean: tuple[int, int, int]


Slots = list[tuple[Ints, Floats]]
"""Operations (int64[B]) and their values (float64[B]), one after the other."""


class _Numbers:
    """Random numbers of each image of a batch, taken one column after the other."""

    def __init__(self, positions: Ints, seed: int, epoch: int) -> None:
        # The most that can be asked for: 2 to shift, 4 for each of RandAugment's 16, 8 to jitter, 1 for the colour.
        self._columns = iter(order.draws(positions, seed, epoch, order.Stream.AUGMENT, 96).T)

    def uniform(self) -> Floats:
        return next(self._columns)

    def integers(self, n: int) -> Ints:
        return (self.uniform() * n).astype(np.int64)

    def sign(self, values: Floats) -> Floats:
        return np.where(self.uniform() < 0.5, values, -values)

    def normal(self) -> Floats:
        # Draws are multiples of 2^-32, and one of 0, which ImageNet meets within an epoch or two, has an infinite quantile.
        normal: Floats = ndtri(np.maximum(self.uniform(), 2.0**-33))
        return normal


def choose(
    cfg: Augment, positions: Ints, *, seed: int, epoch: int, size: int, mean: tuple[float, float, float]
) -> Choices | None:
    """Draw what happens to the images at `positions` (int64[B]) of an epoch, of `size` pixels a side; None if nothing can."""
    if not cfg.on:
        return None
    numbers = _Numbers(positions, seed, epoch)
    slots = _shift(cfg, numbers) if cfg.pad else []
    slots += _POLICIES[cfg.policy](cfg, numbers, size)
    slots += _jitter(cfg, numbers) if any(cfg.jitter) else []
    slots += _grayscale(cfg, numbers) if cfg.grayscale else []
    colour = (round(255 * mean[0]), round(255 * mean[1]), round(255 * mean[2]))
    n = len(positions)
    return Choices(
        ops=np.stack([ops for ops, _ in slots], axis=1) if slots else np.zeros((n, 0), np.int64),
        values=np.stack([values for _, values in slots], axis=1) if slots else np.zeros((n, 0)),
        erase=_erase(cfg, positions, seed, epoch, size),
        fill=colour if cfg.fill == "mean" else (0, 0, 0),
        mean=colour,
    )


def _shift(cfg: Augment, numbers: _Numbers) -> Slots:
    """A random crop of an image padded by n pixels is the image shifted by -n to n, each as likely."""
    ways = 2 * cfg.pad + 1
    slots = []
    for op in (Op.TRANSLATE_X, Op.TRANSLATE_Y):
        moved = numbers.integers(ways) - cfg.pad
        slots.append((np.where(moved == 0, Op.IDENTITY, op).astype(np.int64), moved.astype(np.float64)))
    return slots


def _randaugment(cfg: Augment, numbers: _Numbers, size: int) -> Slots:
    """Draw timm's RandAugment with operations that increase in strength.

    Source: Cubuk et al. 2020 (https://arxiv.org/abs/1909.13719); timm.data.auto_augment, `_RAND_INCREASING_TRANSFORMS`.
    """
    slots = []
    for _ in range(cfg.n):
        names = np.array(_RAND_OPS)[numbers.integers(len(_RAND_OPS))]
        names = np.where(numbers.uniform() < cfg.prob, names, Op.IDENTITY)
        strength = np.clip(cfg.magnitude + cfg.std * numbers.normal(), 0, 10) / 10
        slots.append((names.astype(np.int64), _rand_values(names, numbers.sign(strength), size)))
    return slots


def _rand_values(ops: Ints, strength: Floats, size: int) -> Floats:
    """Return float64[B] values of operations at strengths from -1 to 1, as timm's `_LEVEL_TO_ARG` does."""
    amount = np.abs(strength)
    table = {
        Op.SHEAR_X: 0.3 * strength,
        Op.SHEAR_Y: 0.3 * strength,
        Op.TRANSLATE_X: 0.45 * strength * size,
        Op.TRANSLATE_Y: 0.45 * strength * size,
        Op.ROTATE: 30 * strength,
        Op.POSTERIZE: 4 - np.floor(4 * amount),
        Op.SOLARIZE: 256 - np.floor(256 * amount),
        Op.SOLARIZE_ADD: np.minimum(128, np.floor(110 * amount)),
        **dict.fromkeys(_ENHANCE, np.maximum(0.1, 1 + 0.9 * strength)),
    }
    return _pick(ops, table)


def _trivial(cfg: Augment, numbers: _Numbers, size: int) -> Slots:
    """Draw one operation of torchvision's TrivialAugmentWide.

    Source: Müller & Hutter 2021 (https://arxiv.org/abs/2103.10158); torchvision.transforms.TrivialAugmentWide.
    """
    ops = np.array(_TORCHVISION_OPS)[numbers.integers(len(_TORCHVISION_OPS))].astype(np.int64)
    level = numbers.integers(31) / 30
    signed = numbers.sign(level)
    table = {
        Op.SHEAR_X: 0.99 * signed,
        Op.SHEAR_Y: 0.99 * signed,
        Op.TRANSLATE_X: np.trunc(32 * signed),
        Op.TRANSLATE_Y: np.trunc(32 * signed),
        Op.ROTATE: 135 * signed,
        Op.POSTERIZE: 8 - np.rint(6 * level),
        Op.SOLARIZE: 255 * (1 - level),
        **dict.fromkeys(_ENHANCE, 1 + 0.99 * signed),
    }
    return [(ops, _pick(ops, table))]


def _autoaugment(cfg: Augment, numbers: _Numbers, size: int) -> Slots:
    """Draw one of the 25 pairs of operations that were found for ImageNet; the table is torchvision's.

    Source: Cubuk et al. 2019, table 9 (https://arxiv.org/abs/1805.09501); torchvision.transforms.AutoAugment.
    """
    from torchvision.transforms import AutoAugment  # takes over a second, and only this policy needs it

    policies = AutoAugment().policies
    chosen = numbers.integers(len(policies))
    slots = []
    for place in range(2):
        names, chances, levels = zip(*(pair[place] for pair in policies), strict=True)
        ops = np.array([_BY_NAME[name] for name in names], np.int64)[chosen]
        ops = np.where(numbers.uniform() < np.array(chances)[chosen], ops, Op.IDENTITY).astype(np.int64)
        level = np.array([level or 0 for level in levels], np.float64)[chosen] / 9
        signed = numbers.sign(level)
        reach = 150 / 331 * size
        table = {
            Op.SHEAR_X: 0.3 * signed,
            Op.SHEAR_Y: 0.3 * signed,
            Op.TRANSLATE_X: np.trunc(reach * signed),
            Op.TRANSLATE_Y: np.trunc(reach * signed),
            Op.ROTATE: 30 * signed,
            Op.POSTERIZE: 8 - np.rint(4 * level),
            Op.SOLARIZE: 255 * (1 - level),
            **dict.fromkeys(_ENHANCE, 1 + 0.9 * signed),
        }
        slots.append((ops, _pick(ops, table)))
    return slots


def _pick(ops: Ints, table: dict[Op, Floats]) -> Floats:
    """Return float64[B]: of each image the value in its operation's row; 0 where there is none."""
    values = np.zeros(len(ops))
    for op, column in table.items():
        values = np.where(ops == op, column, values)
    return values


def _jitter(cfg: Augment, numbers: _Numbers) -> Slots:
    """Draw brightness, contrast, saturation and hue, in a random order for each image; as torchvision's ColorJitter."""
    ops = np.array([Op.BRIGHTNESS, Op.CONTRAST, Op.COLOR, Op.HUE], np.int64)
    amounts = np.array(cfg.jitter)
    low, high = np.append(np.maximum(0, 1 - amounts[:3]), -amounts[3]), np.append(1 + amounts[:3], amounts[3])
    values = low + (high - low) * np.stack([numbers.uniform() for _ in ops], axis=1)
    sequence = np.argsort(np.stack([numbers.uniform() for _ in ops], axis=1), axis=1)
    there = np.where(amounts > 0, ops, Op.IDENTITY).astype(np.int64)
    return [(there[column], np.take_along_axis(values, column[:, None], 1)[:, 0]) for column in sequence.T]


def _grayscale(cfg: Augment, numbers: _Numbers) -> Slots:
    ops = np.where(numbers.uniform() < cfg.grayscale, Op.COLOR, Op.IDENTITY).astype(np.int64)
    return [(ops, np.zeros(len(ops)))]


def _erase(cfg: Augment, positions: Ints, seed: int, epoch: int, size: int) -> NDArray[np.int32]:
    """Return int32[B, 4] rectangles; where none of the attempts fits, or the dice say no, of height 0.

    Source: Zhong et al. 2020 (https://arxiv.org/abs/1708.04896); torchvision.transforms.RandomErasing.get_params.
    """
    boxes = np.zeros((len(positions), 4), np.int32)
    if not cfg.erase:
        return boxes
    numbers = order.draws(positions, seed, epoch, order.Stream.ERASE, 1 + 4 * _ATTEMPTS)
    tries = numbers[:, 1:].reshape(-1, _ATTEMPTS, 4)
    area = size * size * (_ERASE_SCALE[0] + (_ERASE_SCALE[1] - _ERASE_SCALE[0]) * tries[..., 0])
    low, high = np.log(_ERASE_RATIO)
    aspect = np.exp(low + (high - low) * tries[..., 1])
    height, width = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (height < size) & (width < size) & (numbers[:, :1] < cfg.erase)
    rows, first = np.arange(len(positions)), fits.argmax(axis=1)
    height, width = height[rows, first], width[rows, first]
    top = np.floor(tries[rows, first, 2] * (size - height + 1))
    left = np.floor(tries[rows, first, 3] * (size - width + 1))
    found = np.stack([top, left, height, width], axis=1)
    return np.where(fits.any(axis=1, keepdims=True), found, boxes).astype(np.int32)


_ENHANCE = (Op.BRIGHTNESS, Op.COLOR, Op.CONTRAST, Op.SHARPNESS)
_GEOMETRIC = (Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE)
_COMMON = (*_GEOMETRIC, *_ENHANCE, Op.POSTERIZE, Op.SOLARIZE, Op.AUTOCONTRAST, Op.EQUALIZE)
_TORCHVISION_OPS = (Op.IDENTITY, *_COMMON)
_RAND_OPS = (*_COMMON, Op.SOLARIZE_ADD, Op.INVERT)
_POLICIES: dict[str, Callable[[Augment, _Numbers, int], Slots]] = {
    "none": lambda cfg, numbers, size: [],
    "randaugment": _randaugment,
    "trivial": _trivial,
    "autoaugment": _autoaugment,
}
_BY_NAME = {
    "ShearX": Op.SHEAR_X,
    "ShearY": Op.SHEAR_Y,
    "TranslateX": Op.TRANSLATE_X,
    "TranslateY": Op.TRANSLATE_Y,
    "Rotate": Op.ROTATE,
    "Brightness": Op.BRIGHTNESS,
    "Color": Op.COLOR,
    "Contrast": Op.CONTRAST,
    "Sharpness": Op.SHARPNESS,
    "Posterize": Op.POSTERIZE,
    "Solarize": Op.SOLARIZE,
    "AutoContrast": Op.AUTOCONTRAST,
    "Equalize": Op.EQUALIZE,
    "Invert": Op.INVERT,
}
