"""The journal of a run: an append-only file of JSON lines, from which every other record of the run is made."""

import errno
import json
import logging
import math
import mmap
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import Any, Self

from pipeline.errors import TrainingError, TransientError, UsageError
from pipeline.output import printable
from pipeline.redact import redact
from pipeline.retry import may_pass, retry

JOURNAL = "journal.jsonl"
_FIELDS: dict[str, dict[str, type]] = {
    "run": {"uid": str, "name": str, "config": dict, "plan": dict, "tags": dict},
    "status": {"status": str},
    "metrics": {"step": int, "values": dict},
    "artifact": {"path": str},
    "model": {"path": str},
    "warning": {"step": int},
}
_DATASET = {"name": str, "digest": str, "context": str, "source": str, "images": int, "classes": int}
_STATUSES = ("RUNNING", "FINISHED", "FAILED", "KILLED", "SCHEDULED")
_UID = re.compile(r"[\w.\-]{1,100}")
_LONGEST_LINE = 4 << 20
"""Bytes. The longest lines, those with a configuration, have some ten thousand."""
_LAST = 2**63
"""MLflow's databases hold smaller integers only."""
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
            if self.path.exists():
                regular(self.path).close()
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


def regular(path: Path) -> BufferedReader:
    """Open a file for reading; nothing that could be read for ever, and without waiting for the other end of a pipe.

    Raises:
        OSError: if it can't be opened or is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(fd, "rb")
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def lines(path: Path, offset: int = 0) -> Iterator[tuple[bytes, int]]:
    """Yield each complete line from byte `offset` on, with its newline, and the byte offset after it.

    Of a line longer than any journal's only the beginning is kept.

    Raises:
        OSError: if the file can't be read.
    """
    with regular(path) as file:
        file.seek(offset)
        while line := file.readline(_LONGEST_LINE):
            offset += len(line)
            end = line
            while end and not end.endswith(b"\n"):
                end = file.readline(_LONGEST_LINE)
                offset += len(end)
            if not end:
                return
            yield line, offset


def records(path: Path, offset: int = 0) -> Iterator[tuple[Record | None, int]]:
    """Yield the record of each complete line from byte `offset` on, and the byte offset after it.

    None for a line that no journal has written, with a warning: a file system may leave such after a power cut.

    Raises:
        OSError: if the file can't be read.
    """
    for line, end in lines(path, offset):
        record = parse(line)
        wrong = "it is no journal line" if record is None else flaw(record)
        if wrong is not None:
            _warn_once(path, end, wrong)
        yield (None if wrong is not None else record), end


@lru_cache(maxsize=1000)  # what follows a journal reads some lines again and again
def _warn_once(path: Path, end: int, wrong: str) -> None:
    _log.warning("%s: the line that ends at byte %d is passed over: %s", printable(str(path)), end, printable(wrong))


def read(path: Path, offset: int = 0) -> Iterator[tuple[Record, int]]:
    """Yield what `records` does, but for the lines that no journal has written.

    Raises:
        OSError: if the file can't be read.
    """
    for record, end in records(path, offset):
        if record is not None:
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
    kind = str(record["kind"])
    if not _is_number(record["t"]) or not 0 <= record["t"] < _LAST / 1000:
        return "t is not a number of seconds"
    fields = _FIELDS.get(kind, {})
    wrong = _mistyped(record, fields)
    if wrong is None and "step" in fields and not -_LAST <= record["step"] < _LAST:
        wrong = "step is out of range"
    return wrong or (_MORE[kind](record) if kind in _MORE else None)


def _mistyped(record: Record, fields: Mapping[str, type]) -> str | None:
    for key, kind in fields.items():
        if not isinstance(record.get(key), kind):
            return f"{key} is missing or not of type {kind.__name__}"
    return None


def _flaw_of_metrics(record: Record) -> str | None:
    for key, value in record["values"].items():
        # Most are floats: to find that out costs the least.
        if type(value) is not float and not _is_value(value):
            return f"{key} is not a number"
    return None


def _flaw_of_run(record: Record) -> str | None:
    numbers = {key: record["plan"].get(key) or 0 for key in _COUNTS}
    numbers["resumed_from_step"] = record.get("resumed_from_step") or 0
    if not all(map(_is_number, numbers.values())):
        return f"one of {', '.join(numbers)} is not a number"
    if not _UID.fullmatch(record["uid"]):
        return "uid has other characters than letters, digits, -, . and _"
    found = record.get("datasets") or []
    if not isinstance(found, list) or any(not isinstance(one, dict) or _mistyped(one, _DATASET) for one in found):
        return "datasets are not whole"
    return None


def _flaw_of_status(record: Record) -> str | None:
    if record["status"] not in _STATUSES:
        return f"status is none of {', '.join(_STATUSES)}"
    return None if _is_number(record.get("step") or 0) else "step is not a number"


def _flaw_of_file(record: Record) -> str | None:
    if Path(record["path"]).is_absolute() or ".." in Path(record["path"]).parts:
        return "path leads out of the run's directory"
    if not isinstance(record.get("artifact_path") or "", str):
        return "artifact_path is not text"
    if not record.get("register"):
        return None
    wrong = _mistyped(record, {"register": str, "metric": str})
    return wrong or (None if _is_value(record.get("value")) else "value is not a number")


_MORE: dict[str, Callable[[Record], str | None]] = {
    "run": _flaw_of_run,
    "status": _flaw_of_status,
    "metrics": _flaw_of_metrics,
    "artifact": _flaw_of_file,
    "model": _flaw_of_file,
}


def _is_value(value: Any) -> bool:
    return value in ("nan", "inf", "-inf") or _is_number(value)


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False
