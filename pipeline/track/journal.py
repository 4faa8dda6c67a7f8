"""The journal of a run: an append-only file of JSON lines, the truth that every other record of the run is made from.

Not here: bringing it into MLflow (`pipeline.track.shipper`) and what the numbers mean.
"""

import errno
import json
import logging
import math
import mmap
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from pipeline.errors import TrainingError, TransientError, UsageError
from pipeline.redact import redact
from pipeline.retry import may_pass, retry

JOURNAL = "journal.jsonl"
_FIELDS: dict[str, dict[str, type]] = {
    "run": {"uid": str, "name": str, "config": dict, "plan": dict, "tags": dict},
    "status": {"status": str},
    "metrics": {"step": int, "values": dict},
}
_COUNTS = ("total_steps", "steps_per_epoch", "world_size")
"""Entries of a plan that readers count with."""
Record = dict[str, Any]
_log = logging.getLogger(__name__)


class Journal:
    """The journal of one run, opened for appending by the one process that writes it.

    Each line is `{"t": unix seconds, "kind": kind, ...}` in strict JSON. It is with the operating system when
    the call returns: killing the process loses nothing. Credentials in URIs don't get as far as the file. `seconds` is what
    writing has taken so far: all that a training waits for its tracking.
    """

    def __init__(self, run_dir: Path, retry_s: float = 0.0) -> None:
        """Open `journal.jsonl` in `run_dir`, and cut off the torn last line of a writer that was killed.

        `retry_s` is how long a line that can't be written is tried again, where the trouble may pass.

        Raises:
            UsageError: if the file can't be opened for writing.
        """
        self.path = run_dir / JOURNAL
        self.seconds = 0.0
        self.retry_s = retry_s
        try:
            self._file = self.path.open("ab+", buffering=0)
        except OSError as error:
            raise UsageError(
                f"run directory {run_dir}: can't write {JOURNAL}: {error.strerror}; choose another run.dir"
            ) from error
        self._cut_torn_line()

    def event(self, kind: str, **fields: Any) -> None:
        """Append one line. Values that JSON lacks become text: paths, and floats that are not finite.

        Raises:
            TransientError: if the line can't be written for now; the file then ends with the line before it.
            TrainingError: if it can't be written at all.
        """
        began = time.perf_counter()
        record = {"t": round(time.time(), 3), "kind": kind} | _plain(fields)
        self._append(json.dumps(record, allow_nan=False).encode() + b"\n")
        self.seconds += time.perf_counter() - began

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append the metrics of optimiser step `step`: finite floats, or the text `nan`, `inf`, `-inf`.

        Each name once a step: of two values of a name at the same step, MLflow gets the first.

        Raises:
            TransientError, TrainingError: as `event` does.
        """
        self.event("metrics", step=int(step), values={name: float(value) for name, value in values.items()})

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        """Return the open journal."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def _cut_torn_line(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        if size == 0:
            return
        with mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            end = view.rfind(b"\n") + 1
        if end < size:
            self._file.truncate(end)

    def _append(self, line: bytes) -> None:
        def warn(error: Exception) -> None:
            _log.warning("%s: can't write the journal: %s; trying again", self.path, error)

        try:
            retry(lambda: self._write(line), self.retry_s, say=warn)
        except OSError as error:
            kind = TransientError if may_pass(error) else TrainingError
            raise kind(
                f"{self.path}: can't write the journal: {error.strerror}; make room there and continue the run"
            ) from error

    def _write(self, line: bytes) -> None:
        before = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with suppress(OSError):
                self._file.truncate(before)
            raise


def _plain(value: Any) -> Any:
    """Return what strict JSON can hold, without credentials."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return redact(str(value))


def lines(path: Path, offset: int = 0) -> Iterator[tuple[bytes, int]]:
    """Yield each complete line from byte `offset` on, with its newline, and the byte offset after it.

    Raises:
        OSError: if the file can't be read.
    """
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield line, offset


def read(path: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Yield the record of each complete line from byte `offset` on, and the byte offset after it.

    Lines that no journal has written are passed over with a warning: a file system may leave such after a power cut.

    Raises:
        OSError: if the file can't be read.
    """
    for line, end in lines(path, offset):
        record = parse(line)
        if record is None:
            _log.warning("%s: the line that ends at byte %d is no journal line and is passed over", path, end)
        else:
            yield record, end


def milliseconds(record: Record) -> int:
    """Return the time of a record in unix milliseconds, the same however often it is asked."""
    return int(float(record["t"]) * 1000 + 0.5)


def parse(line: bytes) -> Record | None:
    """Return the record of one line, or None if the line is not one that a journal writes."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and "kind" in record and "t" in record else None


def check(path: Path, number: int, record: Record) -> None:
    """Refuse a record that is not as this module writes it, which is in line `number` of the journal `path`.

    Raises:
        UsageError: naming the file, the line and what is wrong with it.
    """
    found = flaw(record)
    if found is not None:
        raise UsageError(f"{path}: line {number} is no whole {str(record['kind'])[:20]!r} line: {found}; leave the run out")


def flaw(record: Record) -> str | None:
    """Return in what a record is not as this module writes it, None if it is: so that readers need not expect everything."""
    if not _is_number(record["t"]):
        return "t is not a number"
    for key, kind in _FIELDS.get(str(record["kind"]), {}).items():
        if not isinstance(record.get(key), kind):
            return f"{key} is missing or not of type {kind.__name__}"
    numbers = record["values"] if record["kind"] == "metrics" else {}
    if record["kind"] == "run":
        numbers = {key: record["plan"].get(key) or 0 for key in _COUNTS}
        numbers["resumed_from_step"] = record.get("resumed_from_step") or 0
        if not all(map(_is_number, numbers.values())):
            return f"one of {', '.join(numbers)} is not a number"
    for key, value in numbers.items():
        # Most are floats: to find that out costs the least.
        if type(value) is not float and value not in ("nan", "inf", "-inf") and not _is_number(value):
            return f"{key} is not a number"
    return None


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False
