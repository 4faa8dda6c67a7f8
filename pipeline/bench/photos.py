"""Photograph-like JPEGs for measurements: of the sizes and the compressibility of ImageNet's, the same every time."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

_SIZES = ((500, 375), (500, 333), (375, 500), (500, 500), (640, 480), (333, 500))
_OCTAVES = ((4, 60.0), (16, 40.0), (64, 18.0))  # waves across the image, and their amplitude
_NOISE = 11.0
_DISTINCT = 128
_CLASSES = 10


def make_photo(number: int) -> bytes:
    """Return a JPEG of about 100 KB."""
    rng = np.random.default_rng(number)
    width, height = _SIZES[number % len(_SIZES)]
    pixels = 128 + rng.normal(0, _NOISE, (height, width, 3)).astype(np.float32)
    for waves, amplitude in _OCTAVES:
        coarse = rng.normal(0, amplitude, (waves + 1, waves + 1, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel]).resize((width, height), Image.Resampling.BICUBIC)
            pixels[..., channel] += np.asarray(layer)
    buffer = BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_photos(root: Path, images: int, classes: int = _CLASSES) -> None:
    """Write a data root of `images` training images and one validation image a class, links to 128 distinct photos.

    Raises:
        OSError: if it can't be written.
    """
    photos = root / "photos"
    photos.mkdir(parents=True)
    distinct = min(_DISTINCT, images)
    for number in range(distinct):
        (photos / f"{number}.jpg").write_bytes(make_photo(number))
    for split in ("train", "val"):
        for label in range(classes):
            (root / split / f"{label:04d}").mkdir(parents=True)
            os.link(photos / "0.jpg", root / split / f"{label:04d}" / "000000000.jpg")
    for number in range(classes, images):
        os.link(photos / f"{number % distinct}.jpg", root / "train" / f"{number % classes:04d}" / f"{number:09d}.jpg")
