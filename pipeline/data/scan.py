"""Walk a folder of class folders as torchvision's ImageFolder does, and read the images' sizes.

Not here: keeping what was found (`index`).
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.data import image
from pipeline.errors import DataError
from pipeline.units import count

# Headers of 3,200 cached files: 0.12 ms each with one thread, 0.16 with eight. Threads are for slow file systems, where
# opening a file takes milliseconds.
_THREADS = 8
_CHUNK = 256
_NAMED = 5


@dataclass(frozen=True)
class Listing:
    """The images of a split: names relative to its folder, labels, and the folders walked with their mtimes in ns."""

    classes: tuple[str, ...]
    names: list[str]
    labels: list[int]
    folders: dict[str, int]


def some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")


def walk(folder: Path) -> Listing:
    """List the images below `folder/<class>/`, in ImageFolder's order; hidden files and folders are skipped.

    Raises:
        DataError: if there is no class folder, or one without an image.
    """
    folders = {".": folder.stat().st_mtime_ns}
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DataError(f"{folder}: no class folder in it; images are looked for in {folder}/<class>/")
    names: list[str] = []
    labels: list[int] = []
    empty: list[str] = []
    for label, name in enumerate(classes):
        found = list(_walk_class(folder, name, folders))
        names += found
        labels += [label] * len(found)
        empty += [] if found else [name]
    if empty:
        raise DataError(
            f"{folder}: {count(len(empty), 'class folder')} with no image ({some(empty)}); "
            f"remove them, or add images ({' '.join(image.EXTENSIONS)})"
        )
    return Listing(tuple(classes), names, labels, folders)


def _walk_class(folder: Path, name: str, folders: dict[str, int]) -> Iterator[str]:
    # A folder's mtime is taken before its files are listed, so that a change in between is noticed at the next start.
    folders[name] = (folder / name).stat().st_mtime_ns
    walked = []
    for root, inner, files in os.walk(folder / name, onerror=_fail, followlinks=True):
        inner[:] = [entry for entry in inner if not entry.startswith(".")]
        for inside in (Path(root, entry) for entry in inner):
            folders[os.path.relpath(inside, folder)] = inside.stat().st_mtime_ns
        walked.append((root, files))
    for root, files in sorted(walked):
        below = os.path.relpath(root, folder)
        yield from (f"{below}/{file}" for file in sorted(files) if image.is_image(file))


def _fail(error: OSError) -> None:
    raise error  # os.walk would pass over a folder that it can't list


def read_sizes(folder: Path, names: Sequence[str]) -> NDArray[np.int32]:
    """Return int32[N, 2], the images' widths and heights as stored; shows a bar on a terminal if it takes long.

    Raises:
        DataError: naming the first few images whose header can't be read.
    """
    bad: list[str] = []

    def read(start: int) -> NDArray[np.int32]:
        return np.array([_size(folder, name, bad) for name in names[start : start + _CHUNK]], np.int32)

    bar = tqdm(total=len(names), desc=f"indexing {folder}", unit="img", disable=None, leave=False, delay=1)
    with bar, ThreadPoolExecutor(_THREADS, "index") as pool:
        parts = []
        for part in pool.map(read, range(0, len(names), _CHUNK)):
            parts.append(part)
            bar.update(len(part))
    if bad:
        raise DataError(
            f"{folder}: {count(len(bad), 'image')} can't be read: {some(sorted(bad))}; replace or remove such files"
        )
    return np.concatenate(parts)


def _size(folder: Path, name: str, bad: list[str]) -> tuple[int, int]:
    try:
        return image.read_size(os.path.join(folder, name))  # noqa: PTH118 - a Path for each file costs as much again
    except Exception as error:  # PIL's decoders raise anything on broken files
        bad.append(f"{name} ({image.describe(error)})")
        return 0, 0
