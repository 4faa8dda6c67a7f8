"""What samples a split has: names, labels and sizes as arrays on disk, opened by mmap so that ranks share them.

Not here: finding the images (`scan`), and in which order they are used (`order`).
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import image, scan
from pipeline.data.folders import whole_folder
from pipeline.errors import DataError

_FORMAT = 1
_ARRAYS = ("names", "offsets", "labels", "widths", "heights")


@dataclass(frozen=True)
class Index:
    """The N samples of a split.

    Attributes:
        folder: absolute folder that the names are relative to.
        classes: names of the classes; a label is a place in it.
        names: uint8[bytes], the encoded names one after another.
        offsets: int64[N + 1], where each name starts in `names`.
        labels: int32[N].
        widths: int32[N], pixels as stored.
        heights: int32[N], pixels as stored.
    """

    folder: Path
    classes: tuple[str, ...]
    names: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int32]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def path(self, sample: int) -> Path:
        """Return the path of a sample's file."""
        return self.folder / os.fsdecode(self._name(sample))

    def paths(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return uint8[B, L]: the encoded absolute paths of samples `ids` (int64[B]), padded with NUL."""
        paths = [os.fsencode(self.folder) + b"/" + self._name(int(i)) for i in ids]
        return np.array(paths, np.bytes_).view(np.uint8).reshape(len(paths), -1)

    def _name(self, sample: int) -> bytes:
        return self.names[self.offsets[sample] : self.offsets[sample + 1]].tobytes()

    def explain(self, ids: NDArray[np.int64], error: Exception) -> DataError:
        """Return the error to raise when samples `ids` (int64[B]) could not be read: it names the first bad file."""
        for sample in ids.tolist():
            path = self.path(sample)
            found = image.problem(path, (int(self.widths[sample]), int(self.heights[sample])))
            if found:
                return DataError(f"{path}: {found}; replace or remove this file and start again")
        return DataError(
            f"{self.path(int(ids[0]))} or one of the {len(ids) - 1} images read with it: {image.describe(error)}; "
            "data.executor=reference may read it"
        )


def open_index(root: Path, split: str, cache: Path | None) -> Index:
    """Open the index of `root/split`, after making it if there is none, or if it is broken or older than its folders.

    `cache` is the folder that holds indexes; None stands for the user's cache.

    Raises:
        DataError: as `build` does.
    """
    folder = _folder(root, split)
    return _load(_place(folder, cache), folder) or build(root, split, cache)


def build(root: Path, split: str, cache: Path | None) -> Index:
    """Make the index of `root/split` anew, from the headers of all its images.

    Raises:
        DataError: if the folder, a class or an image can't be used, or the cache can't be written.
    """
    folder = _folder(root, split)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; data.root needs train/<class>/* and val/<class>/*")
    try:
        listing = scan.walk(folder)
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror}; make the folder readable") from error
    sizes = scan.read_sizes(folder, listing.names)
    place = _place(folder, cache)
    try:
        with whole_folder(place) as new:
            _save(new, folder, listing, sizes)
            # Opened before it is moved: the maps stay valid whatever another process does to the place.
            index = _load(new, folder)
    except OSError as error:
        raise DataError(
            f"data.cache: {place.parent} can't be written ({error.strerror}); set it to a folder that can"
        ) from error
    if index is None:
        raise DataError(f"{folder}: changed while it was indexed; wait until the copying is done and start again")
    return index


def _folder(root: Path, split: str) -> Path:
    return root.expanduser().resolve() / split


def _place(folder: Path, cache: Path | None) -> Path:
    home = cache or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "image-pipeline"
    return home.expanduser() / f"index-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:20]}"


def _save(place: Path, folder: Path, listing: scan.Listing, sizes: NDArray[np.int32]) -> None:
    encoded = [os.fsencode(name) for name in listing.names]
    arrays: dict[str, NDArray[Any]] = {
        "names": np.frombuffer(b"".join(encoded), np.uint8),
        "offsets": np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        "labels": np.array(listing.labels, np.int32),
        "widths": sizes[:, 0],
        "heights": sizes[:, 1],
    }
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array, allow_pickle=False)
    meta = {"format": _FORMAT, "folder": str(folder), "classes": listing.classes, "folders": listing.folders}
    (place / "meta.json").write_text(json.dumps(meta))


def _load(place: Path, folder: Path) -> Index | None:
    """Open the index kept at `place`, or return None if there is none, or it is broken or out of date."""
    try:
        meta = json.loads((place / "meta.json").read_text())
        if meta["format"] != _FORMAT or meta["folder"] != str(folder) or _changed(folder, meta["folders"]):
            return None
        arrays = {n: np.asarray(np.load(place / f"{n}.npy", mmap_mode="r", allow_pickle=False)) for n in _ARRAYS}
        return _checked(Index(folder=folder, classes=tuple(meta["classes"]), **arrays))
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _changed(folder: Path, mtimes: dict[str, Any]) -> bool:
    return any((folder / name).stat().st_mtime_ns != mtime for name, mtime in mtimes.items())


def _checked(index: Index) -> Index:
    n = len(index)
    if n == 0 or not (len(index.widths) == len(index.heights) == len(index.offsets) - 1 == n):
        raise ValueError("arrays of different lengths")
    if index.offsets[-1] != len(index.names) or index.labels[-1] != len(index.classes) - 1:
        raise ValueError("arrays of different data sets")
    return index
