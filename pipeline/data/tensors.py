"""Carries augmentations out on whole batches of tensors, where the batch already is: on a GPU.

Images of a batch that get the same operation are done together, each with its own strength, in the arithmetic of
PIL, so that `pixels` gives the same up to rounding.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.augment import Choices, Op
from pipeline.data.pixels import affine

_GEOMETRIC = (Op.SHEAR_X, Op.SHEAR_Y, Op.TRANSLATE_X, Op.TRANSLATE_Y, Op.ROTATE)


def augment(images: Tensor, choices: Choices) -> Tensor:
    """Return uint8[B, S, S, 3] images after what `choices` says; `images` may be changed."""
    images = images.permute(0, 3, 1, 2)
    for slot in range(choices.ops.shape[1]):
        ops = choices.ops[:, slot]
        for op in sorted(set(ops.tolist()) - {int(Op.IDENTITY)}):
            (places,) = (ops == op).nonzero()
            at = torch.from_numpy(places).to(images.device, non_blocking=True)
            images[at] = apply(images[at], Op(op), choices.values[places, slot].tolist(), choices.fill)
    for place, (top, left, height, width) in enumerate(choices.erase.tolist()):
        if height:
            colour = torch.tensor(choices.mean, dtype=torch.uint8, device=images.device)[:, None, None]
            images[place, :, top : top + height, left : left + width] = colour
    return images.permute(0, 2, 3, 1)


def apply(images: Tensor, op: Op, values: list[float], fill: tuple[int, int, int]) -> Tensor:
    """Return uint8[N, 3, S, S] images after one operation, each with its own value."""
    if op in _GEOMETRIC:
        return _warp(images, [affine(op, value, images.shape[-1]) for value in values], fill)
    value = torch.tensor(values, dtype=torch.float32, device=images.device)[:, None, None, None]
    return _POINTWISE[op](images, value)


def _warp(images: Tensor, coefficients: list[tuple[float, ...]], fill: tuple[int, int, int]) -> Tensor:
    """Look each output pixel's place up in the input; places outside get the fill colour, as in PIL."""
    n, _, _, size = images.shape
    # In units of pixels, from pixel centre to pixel centre.
    maps = torch.tensor(coefficients, dtype=torch.float32, device=images.device).view(n, 2, 3)
    centres = torch.arange(size, device=images.device, dtype=torch.float32) + 0.5
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    places = torch.einsum("nij,jhw->nhwi", maps, torch.stack([x, y, torch.ones_like(x)]))
    moved = F.grid_sample(images.float(), places * (2 / size) - 1, padding_mode="border", align_corners=False)
    inside = ((places >= 0) & (places < size)).all(-1)[:, None]
    colour = torch.tensor(fill, dtype=torch.float32, device=images.device)[None, :, None, None]
    return torch.where(inside, moved, colour).round_().to(torch.uint8)


def _gray(images: Tensor) -> Tensor:
    """Return int32[N, 1, S, S] brightness. Source: PIL's conversion to mode L (ITU-R 601-2 in 16-bit fixed point)."""
    red, green, blue = images.int().unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16)[:, None]


def _blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Return the images drawn away from (factor 0) or beyond a base; truncated, as PIL does."""
    base = base.float()
    return (base + factor * (images.float() - base)).clamp_(0, 255).to(torch.uint8)


def _contrast(images: Tensor, value: Tensor) -> Tensor:
    mean = (_gray(images).double().mean((1, 2, 3), keepdim=True) + 0.5).floor()
    return _blend(mean, images, value)


def _sharpness(images: Tensor, value: Tensor) -> Tensor:
    """Blend with a smoothed image, whose border is not smoothed. Source: PIL.ImageFilter.SMOOTH."""
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = images.float()
    smooth[:, :, 1:-1, 1:-1] = (F.conv2d(smooth, kernel, groups=3) / 13 + 0.5).floor()
    return _blend(smooth, images, value)


def _posterize(images: Tensor, value: Tensor) -> Tensor:
    return images & (256 - 2 ** (8 - value)).to(torch.uint8)


def _solarize(images: Tensor, value: Tensor) -> Tensor:
    return torch.where(images < value, images, 255 - images)


def _solarize_add(images: Tensor, value: Tensor) -> Tensor:
    return torch.where(images < 128, (images + value).clamp_(max=255).to(torch.uint8), images)


def _autocontrast(images: Tensor, value: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True).double(), images.amax((2, 3), keepdim=True).double()
    scale = 255 / (high - low)
    stretched = (images * scale - low * scale).clamp_(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, images)


def _equalize(images: Tensor, value: Tensor) -> Tensor:
    """Spread each channel's values evenly. Source: PIL.ImageOps.equalize."""
    n, channels, height, width = images.shape
    rows = images.reshape(n * channels, -1).long()
    counts = torch.zeros(n * channels, 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(1, rows, torch.ones_like(rows))
    last = counts.gather(1, rows.amax(1, keepdim=True))
    step = (height * width - last) // 255
    before = counts.cumsum(1) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, table.gather(1, rows), rows).to(torch.uint8).view_as(images)


def _hue(images: Tensor, value: Tensor) -> Tensor:
    from torchvision.transforms.functional import adjust_hue  # takes one value a call

    turned = [adjust_hue(image, turns) for image, turns in zip(images, value.flatten().tolist(), strict=True)]
    return torch.stack(turned)


_POINTWISE: dict[Op, Callable[[Tensor, Tensor], Tensor]] = {
    Op.BRIGHTNESS: lambda images, value: _blend(torch.zeros_like(value), images, value),
    Op.COLOR: lambda images, value: _blend(_gray(images), images, value),
    Op.CONTRAST: _contrast,
    Op.SHARPNESS: _sharpness,
    Op.POSTERIZE: _posterize,
    Op.SOLARIZE: _solarize,
    Op.SOLARIZE_ADD: _solarize_add,
    Op.AUTOCONTRAST: _autocontrast,
    Op.EQUALIZE: _equalize,
    Op.INVERT: lambda images, value: 255 - images,
    Op.HUE: _hue,
}
