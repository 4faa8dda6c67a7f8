"""One image file: which files count as images, their size and pixels by PIL, and what is wrong with a broken one.

Not here: folders of images (`scan`), crops and batches.
"""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Source: torchvision.datasets.folder.IMG_EXTENSIONS."""

# What both PIL and DALI decode, whatever the file's extension says.
_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")


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
    with Image.open(path, formats=_FORMATS) as image:
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise ValueError("has 16-bit or floating-point pixels; convert it to 8 bits")
        if image.format in _ROTATED and image.getexif().get(_ORIENTATION, 1) != 1:
            raise ValueError("is rotated by its orientation tag; store it upright")
        return image.size


def read_rgb(path: Path) -> Image.Image:
    """Return the decoded image in mode RGB, as stored (not rotated by EXIF).

    Raises:
        Exception: of any kind, as PIL's decoders do on broken files; `describe` puts it into words.
    """
    with Image.open(path, formats=_FORMATS) as image:
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


def problem(path: Path, size: tuple[int, int]) -> str | None:
    """Return what is wrong with a file that should hold an image of `size` (width, height), or None."""
    try:
        found = read_rgb(path).size
    except Exception as error:  # PIL's decoders raise anything on broken files
        return describe(error)
    if found != size:
        return f"is {found[0]}x{found[1]} pixels, but was {size[0]}x{size[1]} when it was indexed"
    return None
