"""Walk a folder of class folders as torchvision's ImageFolder does, and read the images' sizes."""

import errno
import fcntl
import hashlib
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.data import image
from pipeline.data.parallel import in_order
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.units import count

# Headers of 3,200 cached files: 0.12 ms each with one thread, 0.16 with eight. Threads are for slow file systems, where
# opening a file takes milliseconds.
_THREADS = 8
_CHUNK = 256
_ROW_BYTES = 8  # width and height of an image
_SUM_BYTES = 4  # behind the rows of a chunk
NAMED = 5
VERIFY = "`python -m pipeline data verify`"


@dataclass(frozen=True)
class Listing:
    """The N images of a split, wherever they are listed.

    Attributes:
        base: folder that the names are relative to.
        classes: names of the classes.
        names: paths relative to `base`, or names of members of shards.
        labels: places in `classes`.
        stamps: mtimes in ns of what was listed, by path relative to the split's folder.
        shards: names of the tar files that hold the images; empty where each is a file.
        places: for shards, the arrays `shard`, `starts`, `lengths`, `order` and `checksums` (see `shards.Shards`).
    """

    base: Path
    classes: tuple[str, ...]
    names: list[str]
    labels: list[int]
    stamps: dict[str, int]
    shards: tuple[str, ...] = ()
    places: dict[str, NDArray[Any]] = field(default_factory=dict)


def some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


def walk(folder: Path) -> Listing:
    """List the images below `folder/<class>/`, in ImageFolder's order; hidden files and folders are skipped.

    Raises:
        DataError: if there is no class folder, or one without an image, or a link that leads into itself.
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
    return Listing(folder, tuple(classes), names, labels, folders)


def _walk_class(folder: Path, name: str, folders: dict[str, int]) -> Iterator[str]:
    # A folder's mtime is taken before its files are listed, so that a change in between is noticed at the next start.
    folders[name] = (folder / name).stat().st_mtime_ns
    walked = []
    for root, inner, files in os.walk(folder / name, onerror=_fail, followlinks=True):
        inner[:] = [entry for entry in inner if not entry.startswith(".")]
        for inside in (Path(root, entry) for entry in inner):
            refuse_loop(inside)
            folders[os.path.relpath(inside, folder)] = inside.stat().st_mtime_ns
        walked.append((root, files))
    for root, files in sorted(walked):
        below = os.path.relpath(root, folder)
        yield from (f"{below}/{file}" for file in sorted(files) if image.is_image(file))


def refuse_loop(folder: Path) -> None:
    """Refuse a link to a folder that it lies in.

    Raises:
        DataError: if it is one.
    """
    # The kernel follows such a link forty times before it refuses: each image would be counted as often.
    if folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{folder}: is a link to a folder that it lies in; remove the link")


def _fail(error: OSError) -> None:
    raise error  # os.walk would pass over a folder that it can't list


def read_sizes(listing: Listing, partial: Path) -> NDArray[np.int32]:
    """Return int32[N, 2], the images' widths and heights as stored, 0 where a header can't be read.

    Shows a bar on a terminal if it takes long. What was read is kept in the file `partial` meanwhile; a later call for
    the same listing goes on from there.

    Raises:
        OSError: if `partial` can't be written.
    """
    n = len(listing.names)
    sizes = np.zeros((n, 2), np.int32)
    with _own(partial) as file:
        done = _take_over(file, listing, sizes)
        bar = tqdm(total=n, initial=done, desc=f"indexing {listing.base}", unit="img", disable=None, leave=False, delay=1)
        with bar:
            for rows in in_order(_reader(listing), range(done, n, _CHUNK), _THREADS, "index"):
                file.write(rows.tobytes() + _sum(rows.tobytes(), done))
                sizes[done : done + len(rows)] = rows
                done += len(rows)
                bar.update(len(rows))
    return sizes


@contextmanager
def _own(partial: Path) -> Iterator[BinaryIO]:
    """Open the file for writing; while another process does, one that is kept nowhere, as rows of both would be mixed up."""
    with partial.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except OSError as error:  # file systems that lock nothing let all in
            alone = error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
        if alone:
            yield file
            return
    with tempfile.TemporaryFile(dir=partial.parent) as file:
        yield file


def _reader(listing: Listing) -> Callable[[int], NDArray[np.int32]]:
    """Return a function that reads the sizes of a chunk of images, int32[<= 256, 2], from its first image's number."""
    files = _Members(listing) if listing.shards else None

    def read(start: int) -> NDArray[np.int32]:
        ids = range(start, min(start + _CHUNK, len(listing.names)))
        return np.array([files.size(i) if files else _size(listing, i) for i in ids], np.int32)

    return read


def _take_over(file: BinaryIO, listing: Listing, sizes: NDArray[np.int32]) -> int:
    """Fill in the sizes that an interrupted call for the same listing left; return how many there are."""
    about = "\0".join([str(listing.base), repr(listing.stamps), *listing.names])
    digest = hashlib.sha256(about.encode("utf-8", "surrogateescape")).digest()
    file.seek(0)
    same = file.read(len(digest)) == digest
    done, end = 0, len(digest) if same else 0
    while same and done + _CHUNK <= len(sizes):
        rows = file.read(_CHUNK * _ROW_BYTES)
        if len(rows) < _CHUNK * _ROW_BYTES or file.read(_SUM_BYTES) != _sum(rows, done):
            break
        sizes[done : done + _CHUNK] = np.frombuffer(rows, np.int32).reshape(-1, 2)
        done, end = done + _CHUNK, file.tell()
    file.truncate(end)
    if not same:
        file.write(digest)
    return done


def _sum(rows: bytes, start: int) -> bytes:
    """Return the checksum of the rows of a chunk that starts with image `start`."""
    return zlib.crc32(rows, start & 0xFFFFFFFF).to_bytes(_SUM_BYTES, "little")


def _size(listing: Listing, sample: int) -> tuple[int, int]:
    try:
        return image.read_size(os.path.join(listing.base, listing.names[sample]))  # noqa: PTH118 - a Path costs as much again
    except Exception:  # PIL's decoders raise anything on broken files
        return 0, 0


class _Members:
    """Reads the sizes of images in shards."""

    def __init__(self, listing: Listing) -> None:
        files = tuple(listing.base / name for name in listing.shards)
        self._shards = Shards.of(files, listing.places)

    def size(self, sample: int) -> tuple[int, int]:
        try:
            return image.size_of(self._shards.view(sample))
        except Exception:  # PIL's decoders raise anything on broken files
            return 0, 0
