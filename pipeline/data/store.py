"""How an index lies on the disk: one numpy file for each array, and a JSON file about them, with the checksums of all."""

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from pipeline.data import shards
from pipeline.data.scan import Listing
from pipeline.files import open_regular, read_bytes

FORMAT = 3
"""Number of this layout; indexes of others are made anew."""
_WITHOUT_SUMS = 2
"""The layout before checksums: a pack that has it is still read."""
IN_PACK = "index"
"""Folder of a pack's index, beside its shards."""
_META = "meta.json"
_MOST_BYTES = 1 << 28
"""Of `meta.json`: a folder's mtime takes 60 bytes, and a bad image 10."""
_BLOCK = 1 << 18  # bytes that are read at a time; with larger blocks checksums take longer
_LONGEST_SIDE = 1 << 31  # pixels; areas are computed in 64 bits
_ARRAYS = ("names", "offsets", "labels", "widths", "heights")

PACK_ARRAYS = _ARRAYS + shards.ARRAYS
"""The arrays of a pack's index."""

Arrays = dict[str, NDArray[Any]]


class DamagedError(ValueError):
    """An index is not as it was written; the text says which file of it."""


def _plain_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError("leads out of the folder")
    return name


_Number = Annotated[int, Field(ge=0, lt=1 << 62)]


class Meta(BaseModel):
    """What `meta.json` says of an index; a pack's says more (`model_extra`)."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)

    format: int
    folder: str
    base: str
    classes: list[str]
    stamps: dict[str, int]
    shards: list[Annotated[str, AfterValidator(_plain_name)]]
    shard_bytes: list[_Number] = []
    bad: list[_Number]
    reasons: dict[Annotated[str, Field(pattern=r"^[0-9]{1,18}$")], str] = {}
    listed: list[_Number] = []
    sums: dict[str, int] = {}


@dataclass(frozen=True)
class Content:
    """What is to be saved: a listing, int32[N, 2] widths and heights, and what else is to be remembered."""

    folder: Path
    listing: Listing
    sizes: NDArray[np.int32]
    more: Mapping[str, Any] = field(default_factory=dict)


def save(place: Path, content: Content) -> None:
    """Write an index into the folder `place`.

    Raises:
        OSError: if it can't be written.
    """
    listing, sizes = content.listing, content.sizes
    encoded = [os.fsencode(name) for name in listing.names]
    arrays: Arrays = {
        "names": np.frombuffer(b"".join(encoded), np.uint8),
        "offsets": np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        "labels": np.asarray(listing.labels),
        "widths": sizes[:, 0],
        "heights": sizes[:, 1],
        **listing.places,
    }
    meta = {
        "folder": str(content.folder),
        "base": "" if listing.base == content.folder else str(listing.base),
        "classes": listing.classes,
        "stamps": listing.stamps,
        "shards": listing.shards,
        "bad": np.flatnonzero(sizes[:, 0] == 0).tolist(),
        **content.more,
    }
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", _narrow(array), allow_pickle=False)
    seal(place, meta)


def seal(place: Path, meta: Mapping[str, Any]) -> None:
    """Write what is to be known about the arrays in the folder `place`, with their checksums, and flush all to the disk.

    Raises:
        OSError: if it can't be written.
    """
    sums = {}
    for path in sorted(place.glob("*.npy")):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            sums[path.stem] = _checksum(file)
    about = json.loads(json.dumps({"format": FORMAT, **meta, "sums": sums}))
    about.pop("guard", None)
    with (place / _META).open("w") as written:
        json.dump(about | {"guard": _guard(about)}, written)
        written.flush()
        os.fsync(written.fileno())


def _guard(about: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(about, sort_keys=True).encode())


def _checksum(file: BinaryIO) -> int:
    found, block = 0, bytearray(_BLOCK)
    while n := file.readinto(block):  # type: ignore[attr-defined]
        found = zlib.crc32(memoryview(block)[:n], found)
    return found


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array in the smallest unsigned type that holds it."""
    if array.dtype == np.uint64 or not array.size:
        return array
    return array.astype(np.min_scalar_type(int(array.max())))


def load(place: Path, folder: Path) -> tuple[Meta, Arrays] | None:
    """Return what was saved, arrays as read-only maps, or None if there is none, or it is out of date.

    Every byte is compared with its checksum; docs/performance.md says what that costs.

    Raises:
        DamagedError: if it is not as it was written.
    """
    in_pack = place.name == IN_PACK
    if not place.is_dir():
        return None
    meta = read_meta(place)
    if meta.format != FORMAT and not (in_pack and meta.format == _WITHOUT_SUMS):
        return None
    if not in_pack and (meta.folder != str(folder) or _changed(folder, meta.stamps)):  # a pack may lie anywhere
        return None
    names = _ARRAYS + (shards.ARRAYS if meta.shards else ())
    arrays = {name: _open(place / f"{name}.npy", meta) for name in names}
    _check(arrays, meta)
    if in_pack and (meta.base or not meta.shards or len(arrays["checksums"]) != len(arrays["labels"])):
        raise DamagedError(f"{_META} is not that of a pack")
    return meta, arrays


def read_meta(place: Path) -> Meta:
    """Return what `meta.json` in the folder of an index says.

    Raises:
        DamagedError: if it can't be read, or is not as it was written.
    """
    try:
        return parse(read_bytes(place / _META, _MOST_BYTES))
    except OSError as error:
        raise DamagedError(f"{_META}: {error.strerror}") from error


def parse(data: bytes) -> Meta:
    """Return what the bytes of `meta.json` say.

    Raises:
        DamagedError: if they say nothing, or are not as they were written.
    """
    try:
        about = json.loads(data)
        guard = about.pop("guard", None)
        meta = Meta.model_validate(about)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DamagedError(f"{_META}: {key}: {first['msg'].removeprefix('Value error, ')}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{_META} can't be read") from error
    if (guard is not None or meta.format == FORMAT) and guard != _guard(about):
        raise DamagedError(f"{_META} is not as it was written")
    return meta


def _open(path: Path, meta: Meta) -> NDArray[Any]:
    """Return an array as a map; its file is opened once, so that what is mapped is what was compared with the checksum."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            if meta.format == FORMAT and _checksum(file) != meta.sums.get(path.stem):
                raise DamagedError(f"{path.name} is not as it was written")
            file.seek(0)
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if len(shape) != 1 or dtype.kind != "u":
                raise DamagedError(f"{path.name} holds no list of numbers")
            return np.asarray(np.memmap(file, dtype, "r", file.tell(), shape))
    except DamagedError:
        raise
    except OSError as error:
        raise DamagedError(f"{path.name}: {error.strerror or error}") from error
    except Exception as error:  # numpy's reader of headers raises anything
        raise DamagedError(f"{path.name} can't be read") from error


def _changed(folder: Path, stamps: dict[str, int]) -> bool:
    try:
        return any((folder / name).stat().st_mtime_ns != mtime for name, mtime in stamps.items())
    except (OSError, ValueError):
        return True


def _check(arrays: Arrays, meta: Meta) -> None:
    """Refuse numbers that lead out of their arrays, which a file that was made by somebody else may hold.

    Raises:
        DamagedError: naming the first array that has some.
    """
    n = len(arrays["labels"])
    lengths = {len(array) for name, array in arrays.items() if name not in ("names", "offsets", "checksums")}
    if n == 0 or lengths != {n} or len(arrays["offsets"]) != n + 1:
        raise DamagedError("the arrays are of different lengths")
    limits = {"labels": len(meta.classes), "widths": _LONGEST_SIDE, "heights": _LONGEST_SIDE}
    if meta.shards:
        limits |= {"shard": len(meta.shards), "order": n, "starts": 1 << 62, "lengths": 1 << 62}
    for name, limit in limits.items():
        if int(arrays[name].max()) >= limit:
            raise DamagedError(f"{name}.npy holds {int(arrays[name].max()):,}, but only numbers below {limit:,} have a meaning")
    offsets = arrays["offsets"]
    if int(offsets[-1]) != len(arrays["names"]) or not (offsets[1:] >= offsets[:-1]).all():
        raise DamagedError("offsets.npy does not fit names.npy")
    for name in ("widths", "heights"):
        if not np.array_equal(np.flatnonzero(arrays[name] == 0), meta.bad):
            raise DamagedError(f"{name}.npy has other bad images than {_META}")
    if meta.listed and max(meta.listed) >= n:
        raise DamagedError(f"{_META}: listed: there are only {n:,} images")


def is_pack(folder: Path) -> bool:
    """Tell whether a folder holds a finished pack, whole or damaged."""
    return any((folder / IN_PACK / name).exists() for name in (_META, "labels.npy"))


def pack_problem(folder: Path) -> str | None:
    """Return what is wrong with a pack's shards as far as their sizes tell, or None.

    Raises:
        DamagedError: if the pack's index can't be read.
    """
    meta = read_meta(folder / IN_PACK)
    if len(meta.shards) != len(meta.shard_bytes):
        raise DamagedError(f"{_META} does not give each shard a size")
    roots = folder.resolve(), folder.parent.resolve()
    for name, size in zip(meta.shards, meta.shard_bytes, strict=True):
        path = folder / name
        if path.is_symlink() and not any(path.resolve().is_relative_to(root) for root in roots):
            return f"{name} is a link that leads out of the pack"
        if not path.is_file():
            return f"{name} is missing" if not path.exists() else f"{name} is not a regular file"
        if (found := path.stat().st_size) != size:
            return f"{name} has {found:,} bytes instead of {size:,}"
    return None
