"""Samples inside tar shards: where each one's bytes are, and views of them that copy nothing.

Not here: writing shards (`pack`) and listing foreign ones (`sources`).
"""

import mmap
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError

_PAGE = mmap.PAGESIZE
_AHEAD = 2  # batches; measured on a cold cache: 9-11k images/s, further ahead gains nothing


ARRAYS = ("shard", "starts", "lengths", "order", "checksums")


@dataclass(frozen=True)
class Shards:
    """The places of N samples in tar files.

    Attributes:
        files: the shards.
        shard: uint[N], place in `files`.
        starts: uint[N], where a sample's bytes start in its shard.
        lengths: uint[N], bytes.
        order: uint[N], the samples as they lie on the disk: shard by shard, front to back.
        checksums: uint64[N], BLAKE2b of 8 bytes, little-endian; empty for shards made elsewhere.
    """

    files: tuple[Path, ...]
    shard: NDArray[Any]
    starts: NDArray[Any]
    lengths: NDArray[Any]
    order: NDArray[Any]
    checksums: NDArray[np.uint64]
    _maps: dict[int, mmap.mmap] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, files: tuple[Path, ...], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Return the shards whose arrays are given by name."""
        return cls(files, **{name: arrays[name] for name in ARRAYS})  # type: ignore[arg-type]

    def view(self, sample: int) -> NDArray[np.uint8]:
        """Return uint8[L]: a sample's bytes, a read-only view of the page cache.

        Raises:
            DataError: if the shard is missing or shorter than the index says.
        """
        start, length = int(self.starts[sample]), int(self.lengths[sample])
        number = int(self.shard[sample])
        mapped = self._maps.get(number) or self._open(number)
        if start + length > len(mapped):
            raise DataError(f"{self.files[number]}: is cut short; copy it again, or make the pack again")
        return np.frombuffer(mapped, np.uint8, length, start)

    def bytes_at(self, shard: int, start: int, length: int) -> bytes:
        """Return bytes of a shard, given its place in `files`; fewer at its end.

        Raises:
            DataError: if the shard can't be read.
        """
        return (self._maps.get(shard) or self._open(shard))[start : start + length]

    def will_need(self, ids: NDArray[np.int64]) -> None:
        """Have the kernel read samples `ids` (int64[B]) into the page cache, without waiting for it."""
        for sample in ids.tolist():
            start, length = int(self.starts[sample]), int(self.lengths[sample])
            number = int(self.shard[sample])
            mapped = self._maps.get(number) or self._open(number)
            page = start - start % _PAGE
            if start < len(mapped):
                mapped.madvise(mmap.MADV_WILLNEED, page, min(start + length, len(mapped)) - page)

    def _open(self, number: int) -> mmap.mmap:
        path = self.files[number]
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._maps[number] = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
            finally:
                os.close(fd)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            reason = error.strerror if isinstance(error, OSError) else "empty file"
            raise DataError(f"{path}: {reason}; copy it again, or make the pack again") from error
        return self._maps[number]


class _Plan(Protocol):
    @property
    def ids(self) -> NDArray[np.int64]: ...


P = TypeVar("P", bound=_Plan)


def read_ahead(plans: Iterable[P], shards: Shards | None) -> Iterator[P]:
    """Yield the plans, having the kernel read the images of the next two meanwhile."""
    if shards is None:
        yield from plans
        return
    waiting: deque[P] = deque()
    rest = iter(plans)
    while True:
        for plan in islice(rest, _AHEAD + 1 - len(waiting)):
            shards.will_need(plan.ids)
            waiting.append(plan)
        if not waiting:
            return
        yield waiting.popleft()
