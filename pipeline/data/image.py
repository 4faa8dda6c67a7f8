"""One image: which files count as images, their size and pixels by PIL, and what is wrong with a broken one."""

import os
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.data import jpeg
from pipeline.files import open_regular

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Source: torchvision.datasets.folder.IMG_EXTENSIONS."""

FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")
"""What both PIL and DALI decode, whatever the file's extension says."""

Source = Path | str | BytesIO
HEAD = 4096
"""First bytes of a file, which hold most JPEGs' frame header."""


# Here PIL rotates some images by their tag and DALI refuses them; in JPEG and PNG both leave the pixels as they are stored.
_ROTATED = ("TIFF", "WEBP")
_ORIENTATION = 0x0112


def is_image(name: str) -> bool:
    """Tell by its name whether a file is meant as an image; hidden files are not."""
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def read_size(path: Path | str) -> tuple[int, int]:
    """Return width and height in pixels, as stored (not rotated by EXIF), from the file's header.

    Raises:
        Exception: of any kind, as PIL's decoders do on broken files; `describe` puts it into words.
    """
    fd = open_regular(path)
    try:  # a JPEG's header read by hand takes a fifth of PIL's time
        head = os.pread(fd, HEAD, 0)
        if not head:
            raise ValueError("is empty")
        frame = read_frame(head, lambda n: os.pread(fd, n, 0)) if head.startswith(jpeg.SOI) else None
    finally:
        os.close(fd)
    return (frame.width, frame.height) if frame else pil_size(path)


def size_of(data: NDArray[np.uint8]) -> tuple[int, int]:
    """Return width and height in pixels, as stored, of an image in memory (uint8[bytes]).

    Raises:
        Exception: of any kind, as PIL's decoders do on broken files; `describe` puts it into words.
    """
    head = data[:HEAD].tobytes()
    if not head.startswith(jpeg.SOI):
        return pil_size(BytesIO(data.data))
    frame = read_frame(head, lambda n: data[:n].tobytes())
    return frame.width, frame.height


def read_frame(head: bytes, read: Callable[[int], bytes]) -> jpeg.Frame:
    """Return a JPEG's frame header, from its first bytes or, where they don't hold it, from as many as it takes.

    Raises:
        ValueError: if the header is broken.
        OSError: if the file ends within it.
    """
    frame = jpeg.read_frame(head)
    while isinstance(frame, int):
        head, before = read(frame + HEAD), head
        if len(head) < frame or len(head) <= len(before):
            raise OSError("cut off in the header")
        frame = jpeg.read_frame(head)
    return frame


def check_kind(image: Image.Image) -> None:
    """Refuse what PIL opens but not every executor decodes to the same pixels.

    Raises:
        ValueError: saying what it is.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError("has 16-bit or floating-point pixels; convert it to 8 bits")
    if image.format in _ROTATED and image.getexif().get(_ORIENTATION, 1) != 1:
        raise ValueError("is rotated by its orientation tag; store it upright")


def pil_size(source: Source) -> tuple[int, int]:
    """Return width and height in pixels, as stored, by PIL.

    Raises:
        Exception: of any kind, as PIL's decoders do on broken files; `describe` puts it into words.
    """
    with Image.open(source, formats=FORMATS) as image:
        check_kind(image)
        return image.size


def read_rgb(source: Source) -> Image.Image:
    """Return the decoded image in mode RGB, as stored (not rotated by EXIF).

    Raises:
        Exception: of any kind, as PIL's decoders do on broken files; `describe` puts it into words.
    """
    with Image.open(source, formats=FORMATS) as image:
        return image.convert("RGB")


def describe(error: Exception) -> str:
    """Return in a few words why an image could not be read."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not a JPEG, PNG, BMP, PPM, TIFF or WebP image"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def problem(source: Source, size: tuple[int, int]) -> str | None:
    """Return what is wrong with a file that should hold an image of `size` (width, height), or None."""
    try:
        if not isinstance(source, BytesIO):
            os.close(open_regular(source))
        found = read_rgb(source).size
    except Exception as error:  # PIL's decoders raise anything on broken files
        return describe(error)
    if found != size:
        return f"is {found[0]}x{found[1]} pixels, but was {size[0]}x{size[1]} when it was indexed"
    return None
