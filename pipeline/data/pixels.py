"""Carries augmentations out with PIL, one image at a time, and for whole batches in threads."""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from pipeline.data.augment import Choices, Op
from pipeline.data.plan import BatchPlan

Colour = tuple[int, int, int]
Affine = tuple[float, float, float, float, float, float]
_AHEAD = 2  # batches


def affine(op: Op, value: float, size: int) -> Affine:
    """Return a, b, c, d, e, f: the pixel at (x, y) of the output is the input's at (ax + by + c, dx + ey + f)."""
    if op is Op.SHEAR_X:
        return 1, value, 0, 0, 1, 0
    if op is Op.SHEAR_Y:
        return 1, 0, 0, value, 1, 0
    if op is Op.TRANSLATE_X:
        return 1, 0, value, 0, 1, 0
    if op is Op.TRANSLATE_Y:
        return 1, 0, 0, 0, 1, value
    cos, sin, middle = math.cos(math.radians(value)), math.sin(math.radians(value)), size / 2
    return cos, -sin, middle * (1 - cos + sin), sin, cos, middle * (1 - sin - cos)


def apply(image: Image.Image, op: Op, value: float, fill: Colour) -> Image.Image:
    """Return an RGB image after one operation; geometric ones interpolate bilinearly."""
    if op in _POINTWISE:
        return _POINTWISE[op](image, value)
    coefficients = affine(op, value, image.width)
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=fill)


def _solarize_add(image: Image.Image, value: float) -> Image.Image:
    return image.point([min(255, i + int(value)) if i < 128 else i for i in range(256)] * 3)


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    return ImageOps.posterize(image, int(bits)) if bits >= 1 else image.point([0] * 768)  # PIL refuses to keep none


def _hue(image: Image.Image, turns: float) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + int(turns * 255)).astype(np.uint8)  # modulo 256, the whole circle
    return Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")


_POINTWISE: dict[Op, Callable[[Image.Image, float], Image.Image]] = {
    Op.IDENTITY: lambda image, value: image,
    Op.BRIGHTNESS: lambda image, value: ImageEnhance.Brightness(image).enhance(value),
    Op.COLOR: lambda image, value: ImageEnhance.Color(image).enhance(value),
    Op.CONTRAST: lambda image, value: ImageEnhance.Contrast(image).enhance(value),
    Op.SHARPNESS: lambda image, value: ImageEnhance.Sharpness(image).enhance(value),
    Op.POSTERIZE: _posterize,
    Op.SOLARIZE: lambda image, value: ImageOps.solarize(image, value),  # type: ignore[arg-type]  # compares only
    Op.SOLARIZE_ADD: _solarize_add,
    Op.AUTOCONTRAST: lambda image, value: ImageOps.autocontrast(image),
    Op.EQUALIZE: lambda image, value: ImageOps.equalize(image),
    Op.INVERT: lambda image, value: ImageOps.invert(image),
    Op.HUE: _hue,
}


def augment(pixels: NDArray[np.uint8], choices: Choices, place: int) -> NDArray[np.uint8]:
    """Return uint8[S, S, 3] pixels after what `choices` says for the image at `place` of the batch."""
    image: Image.Image | None = None
    for op, value in zip(choices.ops[place].tolist(), choices.values[place].tolist(), strict=True):
        if op != Op.IDENTITY:
            image = apply(Image.fromarray(pixels) if image is None else image, Op(op), value, choices.fill)
    top, left, height, width = choices.erase[place].tolist()
    if image is None and not height:
        return pixels
    done = np.array(pixels if image is None else image)
    done[top : top + height, left : left + width] = choices.mean
    return done


Decoded = tuple[BatchPlan, Tensor]


def augmented(decoded: Iterator[Decoded], threads: int) -> Generator[Decoded, None, None]:
    """Yield plans with their uint8[B, S, S, 3] images augmented by `threads` threads, a few batches ahead."""
    pool = ThreadPoolExecutor(threads, "augment")

    def start(plan: BatchPlan, images: Tensor) -> tuple[BatchPlan, Tensor, list[Future[None]]]:
        done = torch.empty_like(images, memory_format=torch.contiguous_format)
        source, target = images.numpy(), done.numpy()
        chunks = np.array_split(np.arange(len(plan)), min(len(plan), 4 * threads))
        return plan, done, [pool.submit(_augment_some, plan, source, target, chunk.tolist()) for chunk in chunks]

    try:
        ahead = deque(start(*one) for one in islice(decoded, _AHEAD))
        while ahead:
            plan, images, futures = ahead.popleft()
            for future in futures:
                future.result()
            ahead.extend(start(*one) for one in islice(decoded, 1))
            yield plan, images
    finally:
        pool.shutdown(cancel_futures=True)


def _augment_some(plan: BatchPlan, source: NDArray[np.uint8], target: NDArray[np.uint8], places: list[int]) -> None:
    for place in places:
        target[place] = augment(source[place], plan.choices, place) if plan.choices else source[place]
