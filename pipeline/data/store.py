"""How an index lies on the disk: one numpy file for each array, and a JSON file about them.

Not here: what the arrays mean (`index`).
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import shards
from pipeline.data.scan import Listing

FORMAT = 2
"""Number of this layout; indexes of others are made anew."""
IN_PACK = "index"
"""Folder of a pack's index, beside its shards."""
_ARRAYS = ("names", "offsets", "labels", "widths", "heights")

PACK_ARRAYS = _ARRAYS + shards.ARRAYS
"""The arrays of a pack's index."""

Arrays = dict[str, NDArray[Any]]


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
    save_arrays(place, arrays, meta)


def save_arrays(place: Path, arrays: Arrays, meta: Mapping[str, Any]) -> None:
    """Write arrays, each in the smallest unsigned type that holds it, and what is to be known about them.

    Raises:
        OSError: if they can't be written.
    """
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", _narrow(array), allow_pickle=False)
    (place / "meta.json").write_text(json.dumps({"format": FORMAT, **meta}))


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.uint64 or not array.size:
        return array
    return array.astype(np.min_scalar_type(int(array.max())))


def load(place: Path, folder: Path) -> tuple[dict[str, Any], Arrays] | None:
    """Return what was saved, arrays as read-only maps, or None if there is none, or it is broken or out of date."""
    try:
        meta = json.loads((place / "meta.json").read_text())
        moved = place.name != IN_PACK and meta["folder"] != str(folder)  # a pack may lie anywhere
        if meta["format"] != FORMAT or moved or _changed(folder, meta["stamps"]):
            return None
        names = _ARRAYS + (shards.ARRAYS if meta["shards"] else ())
        arrays = {n: np.asarray(np.load(place / f"{n}.npy", mmap_mode="r", allow_pickle=False)) for n in names}
        _check(arrays, len(meta["classes"]))
        return meta, arrays
    except (OSError, ValueError, KeyError, TypeError, EOFError, OverflowError):
        return None


def _changed(folder: Path, stamps: dict[str, Any]) -> bool:
    return any((folder / name).stat().st_mtime_ns != mtime for name, mtime in stamps.items())


def _check(arrays: Arrays, classes: int) -> None:
    n = len(arrays["labels"])
    lengths = {len(array) for name, array in arrays.items() if name not in ("names", "offsets", "checksums")}
    if n == 0 or lengths != {n} or len(arrays["offsets"]) != n + 1:
        raise ValueError("arrays of different lengths")
    if int(arrays["offsets"][-1]) != len(arrays["names"]) or int(arrays["labels"][-1]) >= classes:
        raise ValueError("arrays of different data sets")


def is_pack(folder: Path) -> bool:
    """Tell whether a folder holds a finished pack."""
    return (folder / IN_PACK / "meta.json").is_file()


def pack_meta(folder: Path) -> dict[str, Any]:
    """Return what a pack's index says of it.

    Raises:
        OSError, ValueError: if it can't be read.
    """
    found: dict[str, Any] = json.loads((folder / IN_PACK / "meta.json").read_text())
    return found


def pack_problem(folder: Path) -> str | None:
    """Return what is wrong with a pack's shards as far as their sizes tell, or None."""
    try:
        meta = pack_meta(folder)
        expected = dict(zip(meta["shards"], meta["shard_bytes"], strict=True))
    except (OSError, ValueError, KeyError, TypeError):
        return "the index of this pack is broken"
    for name, size in expected.items():
        try:
            found = (folder / name).stat().st_size
        except OSError:
            return f"{name} is missing"
        if found != size:
            return f"{name} has {found:,} bytes instead of {size:,}"
    return None
