"""Copies a data set to a node's own disk: once a node, resumed where it was interrupted, and compared with what was sent.

Not here: what is in the data set.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from tqdm import tqdm

from pipeline.data import store
from pipeline.errors import DataError
from pipeline.files import write_atomically
from pipeline.units import count

_LOCK, _DONE, _PROGRESS = ".stage.lock", ".staged.json", ".stage.progress"
_BLOCK = 1 << 20  # bytes
_THREADS = 8


@dataclass(frozen=True)
class Staged:
    """What was staged: files and bytes in all, and how many of the files were copied by this call."""

    files: int
    bytes: int
    copied: int


@dataclass(frozen=True)
class _Source:
    fs: Any
    base: str
    sizes: dict[str, int]

    def address(self, name: str) -> str:
        return f"{self.base}/{name}"


def stage(source: str, target: Path) -> Staged:
    """Copy a data root from a folder or any URL that fsspec knows into the folder `target`.

    One process of a node copies and the others wait for it. Files that are there already, from this source and of
    this size, are not copied again. Each file is read back and compared with what was received.

    Raises:
        DataError: if the source can't be read, the copy differs from it, or `target` can't be written.
    """
    target = target.expanduser().absolute()
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _one_a_node(target / _LOCK):
            found = _finished(source, target)
            return found or _copy_all(_look(source), source, target)
    except (OSError, ValueError, ImportError) as error:  # ValueError: an unknown protocol; ImportError: it needs a package
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise DataError(f"staging {source} to {target}: {reason}; the same command goes on where it was") from error


@contextmanager
def _one_a_node(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _finished(source: str, target: Path) -> Staged | None:
    """Return what is there if an earlier call finished, without looking at the source."""
    try:
        done = json.loads((target / _DONE).read_text())
        sizes: dict[str, int] = done["files"]
        if done["source"] != source or any((target / name).stat().st_size != size for name, size in sizes.items()):
            return None
        return Staged(len(sizes), sum(sizes.values()), 0)
    except (OSError, ValueError, KeyError):
        return None


def _look(source: str) -> _Source:
    """List the files of a data root; those of a pack by its index, as a web server need not list folders."""
    fs, base = fsspec.core.url_to_fs(source)
    base = base.rstrip("/")
    names: list[str] = []
    for split in ("train", "val"):
        place = f"{split}/{store.IN_PACK}"
        if not fs.exists(f"{base}/{place}/meta.json"):
            break
        meta = json.loads(fs.cat_file(f"{base}/{place}/meta.json"))
        names += [f"{split}/{name}" for name in meta["shards"]]
        names += [f"{place}/{name}.npy" for name in store.PACK_ARRAYS] + [f"{place}/meta.json"]
    else:
        return _Source(fs, base, {name: int(fs.size(f"{base}/{name}")) for name in names})
    found = fs.find(base, detail=True)
    sizes = {path[len(base) :].lstrip("/"): int(info["size"]) for path, info in found.items()}
    if not sizes:
        raise DataError(f"staging {source}: there is no file; check the address")
    return _Source(fs, base, sizes)


def _copy_all(source: _Source, address: str, target: Path) -> Staged:
    progress = target / _PROGRESS
    before = progress.read_text().split("\n") if progress.is_file() else []
    kept = {line for line in before[1:] if line} if before[:1] == [address] else set()
    missing = [name for name, size in source.sizes.items() if name not in kept or _size(target / name) != size]
    total = sum(source.sizes[name] for name in missing)
    bar = tqdm(total=total, desc=f"staging to {target}", unit="B", unit_scale=True, disable=None, leave=False, delay=1)
    with bar, progress.open("w") as done, ThreadPoolExecutor(_THREADS, "stage") as pool:
        done.write("\n".join([address, *sorted(kept), ""]))
        for name in pool.map(lambda name: _copy(source, name, target / name), missing):
            done.write(f"{name}\n")
            done.flush()
            bar.update(source.sizes[name])
    about = json.dumps({"source": address, "files": source.sizes})
    write_atomically(target / _DONE, lambda path: path.write_text(about))
    progress.unlink()
    return Staged(len(source.sizes), sum(source.sizes.values()), len(missing))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _copy(source: _Source, name: str, path: Path) -> str:
    """Copy a file and return its name."""
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise DataError(f"staging: the source names a file {name} outside of itself; don't trust it")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    sent = hashlib.blake2b()
    with source.fs.open(source.address(name), "rb") as remote, part.open("wb") as file:
        while block := remote.read(_BLOCK):
            sent.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    with part.open("rb") as file:
        same = hashlib.file_digest(file, hashlib.blake2b).digest() == sent.digest()
    if not same or part.stat().st_size != source.sizes[name]:
        part.unlink()
        raise DataError(f"staging {source.address(name)}: the copy differs from the source; the same command copies it again")
    part.replace(path)
    return name


def render(staged: Staged, target: Path) -> str:
    """Return what was staged for people."""
    return f"{target}: {count(staged.files, 'file')}, {staged.bytes:,} bytes; {staged.copied:,} copied now"
