"""What samples a split has: names, labels, sizes and places as arrays, opened by mmap so that ranks share them."""

import hashlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.data import image, scan, shards, sources, store
from pipeline.data.folders import whole_folder
from pipeline.data.shards import Shards
from pipeline.errors import DataError
from pipeline.units import count


@dataclass(frozen=True)
class Index:
    """The N samples of a split.

    Attributes:
        folder: absolute folder that the names are relative to.
        classes: names of the classes; a label is a place in it.
        names: uint8[bytes], the encoded names one after another.
        offsets: uint[N + 1], where each name starts in `names`.
        labels: uint[N].
        widths: uint[N], pixels as stored; 0 where the header can't be read.
        heights: uint[N], pixels as stored.
        bad: int64[bad], sorted samples whose header can't be read.
        shards: where the samples are in tar shards; None: each is a file.
        reasons: what was wrong with bad samples of a pack when it was made.
        listed: int64[listed], sorted samples of a pack that a list of bad images named when it was made.
    """

    folder: Path
    classes: tuple[str, ...]
    names: NDArray[np.uint8]
    offsets: NDArray[Any]
    labels: NDArray[Any]
    widths: NDArray[Any]
    heights: NDArray[Any]
    bad: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    shards: Shards | None = None
    reasons: Mapping[int, str] = field(default_factory=dict)
    listed: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def path(self, sample: int) -> Path:
        """Return the path of a sample's file; of one in a shard, the shard's with the member's name behind it."""
        folder = self.shards.files[int(self.shards.shard[sample])] if self.shards else self.folder
        return folder / self.name(sample)

    def paths(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return uint8[B, L]: the encoded absolute paths of samples `ids` (int64[B]), padded with NUL."""
        folder = os.fsencode(self.folder)
        paths = [os.path.join(folder, self.encoded_name(int(i))) for i in ids]  # noqa: PTH118 - names in lists may be absolute
        return np.array(paths, np.bytes_).view(np.uint8).reshape(len(paths), -1)

    def source(self, sample: int) -> image.Source:
        """Return what `image` reads a sample from."""
        return BytesIO(self.shards.view(sample).data) if self.shards else self.path(sample)

    def read(self, sample: int) -> bytes:
        """Return a sample's bytes as stored.

        Raises:
            OSError: if its file can't be read.
            DataError: if its shard can't be read.
        """
        return self.shards.view(sample).tobytes() if self.shards else self.path(sample).read_bytes()

    def name(self, sample: int) -> str:
        """Return a sample's name."""
        return os.fsdecode(self.encoded_name(sample))

    def encoded_name(self, sample: int) -> bytes:
        """Return a sample's name as the file system has it."""
        return self.names[int(self.offsets[sample]) : int(self.offsets[sample + 1])].tobytes()

    def reason(self, sample: int) -> str:
        """Return why the header of a bad sample can't be read."""
        if sample in self.reasons:
            return self.reasons[sample]
        try:
            image.pil_size(self.source(sample)) if self.shards else image.read_size(self.path(sample))
        except Exception as error:  # PIL's decoders raise anything on broken files
            return image.describe(error)
        return "changed since it was indexed"

    def first_bad(self) -> list[str]:
        """Return the first few bad samples' names, each with why its header can't be read."""
        return [f"{self.name(sample)}: {self.reason(sample)}" for sample in self.bad[: scan.NAMED].tolist()]

    def problem(self, sample: int) -> str | None:
        """Return what is wrong with a sample, or None."""
        return image.problem(self.source(sample), (int(self.widths[sample]), int(self.heights[sample])))

    def problems(self, ids: NDArray[np.int64]) -> dict[int, str]:
        """Return what is wrong with which of the samples `ids` (int64[B])."""
        found = {sample: self.problem(sample) for sample in np.unique(ids).tolist()}
        return {sample: reason for sample, reason in found.items() if reason}

    def explain(self, ids: NDArray[np.int64], error: Exception) -> DataError:
        """Return the error to raise when samples `ids` (int64[B]) could not be read though each alone seems good."""
        return DataError(
            f"{self.path(int(ids[0]))} or one of the {len(ids) - 1} images read with it: {image.describe(error)}; "
            "data.executor=reference may read it"
        )


def open_index(root: Path, split: str, cache: Path | None, *, allow_bad: bool = False) -> Index:
    """Open the index of `root/split`, after making it if there is none, or if it is broken or older than its sources.

    A pack brings its own. `cache` is the folder that holds the others; None stands for the user's cache. With `allow_bad`
    all images may be unreadable.

    Raises:
        DataError: as `build` does.
    """
    folder = _folder(root, split)
    if store.is_pack(folder):
        return open_pack(folder)
    place = _place(folder, cache)
    try:
        found = _load(place, folder)
    except store.DamagedError as error:
        tqdm.write(f"warning: {place}: the index of {folder} is damaged ({error}); it is made anew", file=sys.stderr)
        found = None
    if found is None or (len(found.bad) == len(found) and not allow_bad):
        return build(root, split, cache, allow_bad=allow_bad)
    return found


def open_pack(folder: Path) -> Index:
    """Open the index that lies beside a pack's shards in `folder`.

    Raises:
        DataError: if it is broken, or a shard is missing or of another size.
    """
    place = folder / store.IN_PACK
    try:
        problem = store.pack_problem(folder)
        index = None if problem else _load(place, folder)
    except store.DamagedError as error:
        index, problem = None, f"the index of this pack is broken ({error})"
    if index is None:
        problem = problem or "the index of this pack is of another version of this program"
        raise DataError(f"{folder}: {problem}; copy it again, or make the pack again")
    return index


def build(root: Path, split: str, cache: Path | None, *, allow_bad: bool = False) -> Index:
    """Make the index of `root/split` anew from the headers of all its images; an interrupted one goes on.

    Images whose header can't be read are kept, and marked as bad; with `allow_bad` all of them may be.

    Raises:
        DataError: if the folder or a class can't be used, no image can be read, or the cache can't be written.
    """
    folder = _folder(root, split)
    if store.is_pack(folder):
        return open_pack(folder)
    try:
        listing = sources.find(folder)
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror}; make it readable, or remove it") from error
    place = _place(folder, cache)
    partial = place.with_name(f"{place.name}.partial")
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        sizes = scan.read_sizes(listing, partial)
        if not sizes.any() and not allow_bad:
            raise DataError(f"{listing.base}: none of the {count(len(sizes), 'image')} can be read; {scan.VERIFY} says why")
        with whole_folder(place) as new:
            store.save(new, store.Content(folder, listing, sizes))
            # Opened before it is moved: the maps stay valid whatever another process does to the place.
            index = _load(new, folder)
        partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"data.cache: {place.parent} can't be written ({error.strerror or error}); set it to a folder that can"
        ) from error
    if index is None:
        raise DataError(f"{folder}: changed while it was indexed; wait until the copying is done and start again")
    return index


def _folder(root: Path, split: str) -> Path:
    return root.expanduser().resolve() / split


def _place(folder: Path, cache: Path | None) -> Path:
    home = cache or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "image-pipeline"
    return home.expanduser() / f"index-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:20]}"


def _load(place: Path, folder: Path) -> Index | None:
    """Open the index kept at `place`, or return None if there is none, or it is out of date.

    Raises:
        DamagedError: if it is not as it was written.
    """
    kept = store.load(place, folder)
    if kept is None:
        return None
    meta, arrays = kept
    found = None
    if meta.shards:
        placed = {name: arrays.pop(name) for name in shards.ARRAYS}
        found = Shards.of(tuple(folder / name for name in meta.shards), placed)
    index = Index(
        folder=Path(meta.base) if meta.base else folder,
        classes=tuple(meta.classes),
        bad=np.array(meta.bad, np.int64),
        shards=found,
        reasons={int(sample): reason for sample, reason in meta.reasons.items()},
        listed=np.array(meta.listed, np.int64),
        **arrays,
    )
    return None if _older_than_bad(place, index) else index


def _older_than_bad(place: Path, index: Index) -> bool:
    """Tell whether a file that was bad has been replaced or mended since; folders' mtimes don't tell of that."""
    if index.shards is not None or not len(index.bad):
        return False
    made = (place / "meta.json").stat().st_mtime_ns
    return any(_ctime_ns(index.path(sample)) > made for sample in index.bad.tolist())


def _ctime_ns(path: Path) -> int:
    # Not the mtime, which `cp -p` keeps, and `chmod` too. What is missing, or a link to nowhere, is as bad as it was.
    try:
        return path.stat().st_ctime_ns
    except OSError:
        return 0
