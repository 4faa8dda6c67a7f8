"""Copies a data set to a node's own disk: once a node, resumed where it was interrupted, and compared with what was sent."""

import fcntl
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from tqdm import tqdm

from pipeline.data import sources, store
from pipeline.data.parallel import in_order
from pipeline.data.scan import refuse_loop, some
from pipeline.errors import DataError, PipelineError
from pipeline.files import write_atomically
from pipeline.units import count

_LOCK, _DONE, _PROGRESS = ".stage.lock", ".staged.json", ".stage.progress"
_OURS = {_LOCK, _DONE, _PROGRESS}
_BLOCK = 1 << 20  # bytes
_THREADS = 8
_AGAIN = "the same command goes on where it was"


@dataclass(frozen=True)
class Staged:
    """What was staged: files and bytes in all, and how many of the files were copied by this call."""

    files: int
    bytes: int
    copied: int


class _File(NamedTuple):
    """A file of the source: its size, and what else tells that it has changed."""

    size: int
    stamp: str


_Files = dict[str, _File]


@dataclass(frozen=True)
class _Source:
    fs: Any
    base: str
    files: _Files
    version: str

    def address(self, name: str) -> str:
        return f"{self.base}/{name}"


def stage(source: str, target: Path) -> Staged:
    """Copy a data root from a folder or any URL that fsspec knows into the folder `target`.

    One process of a node copies and the others wait for it. Files that are there already, from this source and as they
    are now, are not copied again. Each file is read back and compared with what was received. A source that can't be
    reached is a warning only, if all of it is there.

    Raises:
        DataError: if the source can't be read, the copy differs from it, or `target` can't be written or holds other files.
    """
    target = target.expanduser().absolute()
    fs, base = _connect(source, target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _one_a_node(target / _LOCK) as waited:
            return _stage(source, (fs, base), target, waited)
    except PipelineError:
        raise
    except store.DamagedError as error:
        raise DataError(f"staging {source}: the index of this pack is broken ({error}); make the pack again") from error
    except FileNotFoundError as error:
        raise DataError(f"staging {source}: {error.filename or base}: no such file or folder; check the address") from error
    except OSError as error:
        raise DataError(f"staging {source} to {target}: {_reason(error)}; {_AGAIN}") from error
    except Exception as error:  # what is behind fsspec raises anything
        raise DataError(f"staging {source}: {_reason(error)}; {_AGAIN}") from error


def _stage(source: str, place: tuple[Any, str], target: Path, waited: bool) -> Staged:
    before = _read_done(target, source)
    finished = before is not None and all(_size(target / name) == file.size for name, file in before[1].items())
    found = Staged(len(before[1]), sum(file.size for file in before[1].values()), 0) if before and finished else None
    if found and waited:  # the process that was waited for has just looked
        return found
    try:
        version = _version(*place)
    except Exception as error:  # what is behind fsspec raises anything
        if not found:
            raise
        text = f"warning: {source}: {_reason(error)}; using what was staged to {target} before"
        tqdm.write(text, file=sys.stderr)
        return found
    if found and before and before[0] == version:
        return found
    return _copy_all(_look(source, place, version), source, target)


def _connect(source: str, target: Path) -> tuple[Any, str]:
    if not source.strip():
        raise DataError("staging: the source is empty; give a folder or a URL")
    try:
        fs, base = fsspec.core.url_to_fs(source)
    except ImportError as error:
        # fsspec says `Install s3fs to access S3` or `SMB requires "smbprotocol" ...`.
        package = re.search(r'nstall (?:the )?([\w-]+)|requires "([\w-]+)"', str(error))
        remedy = f"run `pip install {package[1] or package[2]}`" if package else "install what it needs"
        raise DataError(f"staging {source}: {_reason(error)}; {remedy}, or copy it to a folder") from error
    except Exception as error:  # what is behind fsspec raises anything
        raise DataError(f"staging {source}: {_reason(error)}; give a folder or a URL that fsspec knows") from error
    base = base.rstrip("/")
    if _is_local(fs):
        here, there = Path(base).resolve(), target.resolve()
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise DataError(f"staging {source} to {target}: one lies in the other; choose another folder")
    return fs, base


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [""])[0] or type(error).__name__  # time-outs have no text


@contextmanager
def _one_a_node(path: Path) -> Iterator[bool]:
    """Let one process in at a time; yield whether another one was waited for."""
    with path.open("w") as file:
        waited = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = True
            fcntl.flock(file, fcntl.LOCK_EX)
        yield waited


def _read_done(target: Path, source: str) -> tuple[str, _Files] | None:
    """Return the source's version and files that an earlier call finished copying, without looking at the source.

    Raises:
        DataError: if `target` holds a copy of something else.
    """
    try:
        done = json.loads((target / _DONE).read_text())
        _same(target, source, done["source"])
        return done["version"], {name: _File(*file) for name, file in done["files"].items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _same(target: Path, source: str, found: str) -> None:
    # Its files would be mixed with ours, and trained on.
    if found != source:
        raise DataError(f"{target}: holds a copy of {found}; choose another folder, or remove this one")


def _metas(fs: Any, base: str) -> dict[str, bytes] | None:
    """Return what the indexes of a pack's splits say, or None if there is no pack."""
    found = {}
    for split in ("train", "val"):
        try:
            found[split] = fs.cat_file(f"{base}/{split}/{store.IN_PACK}/meta.json")
        except (FileNotFoundError, NotADirectoryError):
            return None
    return found


def _version(fs: Any, base: str) -> str:
    """Return what changes when the source does: of a pack its index, of a folder the mtimes that an index goes by.

    Of other sources nothing is known without listing all of them.
    """
    metas = _metas(fs, base)
    if metas:
        return hashlib.blake2b(b"".join(metas.values()), digest_size=16).hexdigest()
    if not _is_local(fs):
        return ""
    places = [Path(base), *Path(base).glob("*"), *(path for split in ("train", "val") for path in Path(base, split).glob("*"))]
    seen = [(str(path), path.stat().st_mtime_ns) for path in sorted(places) if path.exists()]
    return hashlib.blake2b(repr(seen).encode(errors="surrogateescape"), digest_size=16).hexdigest()


def _look(source: str, place: tuple[Any, str], version: str) -> _Source:
    """List the files of a data root; those of a pack by its index, as a web server need not list folders."""
    fs, base = place
    metas = _metas(fs, base)
    if metas:
        files = {name: _File(_length(fs, f"{base}/{name}"), version) for name in _pack_files(metas)}
    elif _is_local(fs):
        files = _local_files(base)
    else:
        listed = fs.find(base, detail=True)
        named = {path[len(base) :].lstrip("/"): info for path, info in listed.items()}
        files = {name: _File(info["size"] or _length(fs, f"{base}/{name}"), _stamp(info)) for name, info in named.items()}
    files = {name: file for name, file in files.items() if name not in _OURS}
    _check_lists(source, place, files)
    if not files:
        raise DataError(f"staging {source}: there is no file; check the address")
    return _Source(fs, base, files, version)


def _check_lists(source: str, place: tuple[Any, str], files: _Files) -> None:
    fs, base = place
    for name in {"train.csv", "val.csv"} & files.keys():
        outside = sources.outside(fs.cat_file(f"{base}/{name}"))
        if outside:
            raise DataError(
                f"staging {source}: {name} lists {count(len(outside), 'image')} outside of the folder ({some(outside)}), which "
                "would stay where they are; list paths relative to the folder and below it, or make a pack and stage that"
            )


def _length(fs: Any, address: str) -> int:
    size = fs.size(address)
    if size is None:
        raise DataError(f"staging: {address}: the server doesn't tell its size; use another server")
    return int(size)


def _pack_files(metas: dict[str, bytes]) -> Iterator[str]:
    for split, meta in metas.items():
        yield from (f"{split}/{name}" for name in store.parse(meta).shards)
        yield from (f"{split}/{store.IN_PACK}/{name}.npy" for name in store.PACK_ARRAYS)
        yield f"{split}/{store.IN_PACK}/meta.json"


def _stamp(info: dict[str, Any]) -> str:
    return str(next((info[key] for key in ("ETag", "etag", "LastModified", "mtime", "created") if info.get(key)), ""))


def _local_files(base: str) -> _Files:
    files: _Files = {}
    odd: list[str] = []
    for root, inner, names in os.walk(base, onerror=_fail, followlinks=True):
        for folder in inner:
            refuse_loop(Path(root, folder))
        for path in (Path(root, name) for name in names):
            name = os.path.relpath(path, base)
            if path.is_file():
                about = path.stat()
                files[name] = _File(about.st_size, str(about.st_mtime_ns))
            else:  # a pipe, or a link to nowhere
                odd.append(name)
    if odd:
        tqdm.write(
            f"not copied from {base}: {count(len(odd), 'entry', 'entries')} that no file is behind: {some(odd)}",
            file=sys.stderr,
        )
    return files


def _fail(error: OSError) -> None:
    raise error  # os.walk would pass over a folder that it can't list


def _copy_all(source: _Source, address: str, target: Path) -> Staged:
    progress = target / _PROGRESS
    before = _kept(target, address)
    kept = {name: file for name, file in source.files.items() if before.get(name) == file and _size(target / name) == file.size}
    missing = [name for name in source.files if name not in kept]
    for name in sorted(before.keys() - source.files.keys()):  # gone from the source since
        _within(name)
        (target / name).unlink(missing_ok=True)
    lines = "".join(json.dumps([name, *file]) + "\n" for name, file in kept.items())
    write_atomically(progress, lambda path: path.write_text(json.dumps(address) + "\n" + lines))
    (target / _DONE).unlink(missing_ok=True)
    total = sum(source.files[name].size for name in missing)
    bar = tqdm(total=total, desc=f"staging to {target}", unit="B", unit_scale=True, disable=None, leave=False, delay=1)
    with bar, progress.open("a") as done:
        for name in in_order(lambda name: _copy(source, name, target / name), missing, _THREADS, "stage"):
            done.write(json.dumps([name, *source.files[name]]) + "\n")
            done.flush()
            bar.update(source.files[name].size)
    about = json.dumps({"source": address, "version": source.version, "files": source.files})
    write_atomically(target / _DONE, lambda path: path.write_text(about))
    progress.unlink()
    return Staged(len(source.files), sum(file.size for file in source.files.values()), len(missing))


def _kept(target: Path, address: str) -> _Files:
    """Return what earlier calls have copied.

    Raises:
        DataError: if `target` holds anything else.
    """
    done = _read_done(target, address)
    if done is not None:
        return done[1]
    progress = target / _PROGRESS
    if not progress.is_file():
        others = sorted(path.name for path in target.iterdir() if path.name not in _OURS and not path.name.endswith(".tmp"))
        if others:
            raise DataError(
                f"{target}: holds files that were not staged ({some(others)}); choose another folder, or remove them"
            )
        return {}
    first, *lines = progress.read_text().split("\n")[:-1]  # the last one may be cut off
    _same(target, address, json.loads(first))
    return {name: _File(size, stamp) for name, size, stamp in map(json.loads, lines)}


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _within(name: str) -> None:
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise DataError(f"staging: the source names a file {name} outside of itself; don't trust it")


def _copy(source: _Source, name: str, path: Path) -> str:
    """Copy a file and return its name."""
    _within(name)
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
    if not same or part.stat().st_size != source.files[name].size:
        part.unlink()
        raise DataError(f"staging {source.address(name)}: the copy differs from the source; the same command copies it again")
    part.replace(path)
    return name


def render(staged: Staged, target: Path) -> str:
    """Return what was staged for people."""
    return f"{target}: {count(staged.files, 'file')}, {staged.bytes:,} bytes; {staged.copied:,} copied now"
