"""Samples inside tar shards: where each one's bytes are, and views of them that copy nothing."""

import errno
import mmap
import os
import resource
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError

_GAP = 4096  # bytes between samples that are read with them: their labels, headers and padding
_QUEUE = 8  # requests to read ahead that may wait; more would be of no use by the time they are made
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
        """Have the kernel read samples `ids` (int64[B]) into the page cache, without waiting for it, neighbours as one run.

        May be called from any thread. What can't be read is passed over: reading it says so.
        """
        for number, runs in self._runs(ids).items():
            try:
                fd = os.open(self.files[number], os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                for start, stop in runs:  # not madvise, during which Python's other threads stand still
                    os.posix_fadvise(fd, start, stop - start, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(fd)

    def _runs(self, ids: NDArray[np.int64]) -> dict[int, list[tuple[int, int]]]:
        """Return where to read in which shards, front to back, so that all of samples `ids` are read."""
        found: dict[int, list[tuple[int, int]]] = {}
        shard, starts = self.shard[ids].astype(np.int64), self.starts[ids].astype(np.int64)
        stops = starts + self.lengths[ids].astype(np.int64)
        for place in np.lexsort((starts, shard)).tolist():
            runs = found.setdefault(int(shard[place]), [])
            start, stop = int(starts[place]), int(stops[place])
            if runs and start - runs[-1][1] <= _GAP:
                runs[-1] = runs[-1][0], max(stop, runs[-1][1])
            else:
                runs.append((start, stop))
        return found

    def _open(self, number: int) -> mmap.mmap:
        path = self.files[number]
        try:
            try:
                self._maps[number] = _map(path)
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                _allow_more_files()
                self._maps[number] = _map(path)
        except (OSError, ValueError) as error:  # ValueError: an empty file
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                raise DataError(f"{path}: {error.strerror}; raise `ulimit -n`, or pack with a larger --shard-images") from error
            reason = error.strerror if isinstance(error, OSError) else "empty file"
            raise DataError(f"{path}: {reason}; copy it again, or make the pack again") from error
        return self._maps[number]


def _map(path: Path) -> mmap.mmap:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(fd)


def _allow_more_files() -> None:
    # Python keeps a descriptor open for each map, and a pack of ten million images has 2,400 shards; the usual limit is 1,024.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Plan(Protocol):
    @property
    def ids(self) -> NDArray[np.int64]: ...


P = TypeVar("P", bound=_Plan)


@dataclass(frozen=True)
class Runs:
    """The samples of the batches to come, int64 each, of `batches` batches at a time."""

    batches: int
    ids: Iterator[NDArray[np.int64]]


def read_ahead(plans: Iterable[P], shards: Shards | None, runs: Runs | None = None) -> Iterator[P]:
    """Yield the plans, having the kernel read the images of the next two meanwhile; with `runs`, the next run's and this one's.

    A thread of its own asks the kernel, as that may take time on a disk that is busy.
    """
    if shards is None:
        yield from plans
        return
    waiting: deque[P] = deque()
    rest, taken = iter(plans), 0
    with _Asker(shards) as asker:
        while True:
            for plan in islice(rest, _AHEAD + 1 - len(waiting)):
                waiting.append(plan)
                if runs is None:
                    asker.ask(iter([plan.ids]))
            if not waiting:
                return
            if runs is not None and taken % runs.batches == 0:
                for _ in range(1 if taken else 2):
                    asker.ask(runs.ids)
            taken += 1
            yield waiting.popleft()


class _Asker:
    """A thread that asks the kernel for samples."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._pool = ThreadPoolExecutor(1, "read ahead")
        self._asked: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def ask(self, ids: Iterator[NDArray[np.int64]]) -> None:
        """Ask for the next of `ids`, unless much is to be asked for already."""
        while self._asked and self._asked[0].done():
            self._asked.popleft()
        if len(self._asked) < _QUEUE:
            self._asked.append(self._pool.submit(self._ask, ids))

    def _ask(self, ids: Iterator[NDArray[np.int64]]) -> None:
        for some in islice(ids, 1):
            self._shards.will_need(some)
