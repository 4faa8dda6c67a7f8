"""Tar archives from anywhere, read with a bound on memory: what a header claims is never taken at its word."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import GzipFile
from pathlib import Path
from typing import Any, BinaryIO

from pipeline.files import open_regular

_GZIP = b"\x1f\x8b"  # Source: RFC 1952, section 2.3.1
_MOST_AT_ONCE = 64 << 20  # bytes; longer than any member that is read whole


class _Bounded:
    """A file of which at most `most` bytes are read in all, and no more than 64 MiB at once."""

    def __init__(self, file: BinaryIO | GzipFile, most: float) -> None:
        self._file, self._most = file, most

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_AT_ONCE:
            raise tarfile.ReadError(f"a header claims {size:,} bytes")
        self._within(self._file.tell() + size)
        return self._file.read(size)

    def seek(self, place: int) -> int:
        self._within(place)
        return self._file.seek(place)

    def tell(self) -> int:
        return self._file.tell()

    def _within(self, place: int) -> None:
        if not 0 <= place <= self._most:
            raise tarfile.ReadError(f"larger than {self._most:,} bytes")


@contextmanager
def open_tar(path: Path, *, zipped: bool = False, most: float = float("inf")) -> Iterator[tarfile.TarFile]:
    """Open a tar, or with `zipped` a tar or .tar.gz that unpacks to at most `most` bytes.

    Raises:
        tarfile.TarError: if it is no whole tar; in the `with` block too. Headers that make no sense end so as well.
        OSError, EOFError, zlib.error: if it can't be read, is no regular file, or its compression is damaged.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        packed = zipped and os.pread(file.fileno(), 2, 0) == _GZIP
        bounded: Any = _Bounded(GzipFile(fileobj=file) if packed else file, most)
        try:
            with tarfile.open(fileobj=bounded, mode="r:") as tar:
                yield tar
        except (ValueError, OverflowError, IndexError, RecursionError) as error:
            # What tarfile makes of forged numbers, and of extended headers that are none.
            raise tarfile.ReadError("a header in it makes no sense") from error
