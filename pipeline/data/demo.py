"""The embedded data set: the handwritten digits that scikit-learn ships, as a folder of JPEGs in ImageNet's layout."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.data.folders import whole_folder
from pipeline.errors import DataError

_SIDE = 40  # pixels
_QUALITY = 95
_MANIFEST = "digits.json"


def write(root: Path) -> int:
    """Write 1,797 scans of digits to `root/train/<digit>/` and `root/val/<digit>/`, and return their number.

    Every fifth scan of each digit is for validation (360 of them). A folder that already holds exactly these files is
    left as it is; one that was damaged is written anew.

    Raises:
        DataError: if the folder holds something else, or can't be written.
    """
    root = root.expanduser().absolute()
    try:
        return _known(root) or _write(root)
    except OSError as error:
        raise DataError(f"{root}: can't be written ({error.strerror}); choose another folder") from error


def _known(root: Path) -> int:
    """Return how many images a complete demo at `root` has, 0 if there is none or it is damaged."""
    if not root.exists():
        return 0
    manifest = root / _MANIFEST
    if not manifest.is_file():
        if root.is_dir() and not any(root.iterdir()):
            return 0
        raise DataError(f"{root}: exists and is not the demo data set; choose another folder, or remove it")
    try:
        expected = json.loads(manifest.read_text())
    except ValueError:
        return 0
    found = _fingerprint(root)
    return int(found["images"]) if expected == found else 0


def _write(root: Path) -> int:
    with whole_folder(root) as new:
        for name, scan in _scans():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            scan.save(path, quality=_QUALITY)
        found = _fingerprint(new)
        (new / _MANIFEST).write_text(json.dumps(found))
    return int(found["images"])


def _scans() -> Iterator[tuple[str, Image.Image]]:
    """Yield each scan's name and image; the split does not depend on any library's random numbers."""
    from sklearn.datasets import load_digits  # takes a second, and only writing needs it

    digits = load_digits()
    # Of the scans sorted by digit every fifth: the shares of the digits are equal to within one scan.
    for place, scan in enumerate(np.argsort(digits.target, kind="stable")):
        pixels = (digits.images[scan] * (255 / 16)).round().astype(np.uint8)
        image = Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).convert("RGB")
        yield f"{'val' if place % 5 == 0 else 'train'}/{digits.target[scan]}/{scan:04d}.jpeg", image


def _fingerprint(root: Path) -> dict[str, int | str]:
    paths = sorted(root.glob("*/*/*"))
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return {"images": len(paths), "sha256": digest.hexdigest()}
