"""What runs there are, read from their journals; it needs no MLflow."""

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import UsageError
from pipeline.output import printable
from pipeline.track.cursor import Cursor
from pipeline.track.curves import collect
from pipeline.track.journal import JOURNAL, Record, check, flaw, lines, parse
from pipeline.track.lock import in_use
from pipeline.track.mapping import MEMBERS
from pipeline.units import seconds

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED", "SCHEDULED", "DIED"]
_SUMMARY = "summary/"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunInfo:
    """One run. Times are unix seconds; `step` and `total_steps` optimiser steps; `summary` has fractions, seconds, images/s.

    `last` has the last value of each metric, `config` the flat configuration.

    DIED is a run whose journal says RUNNING while no process holds its directory.
    """

    name: str
    run_dir: Path
    uid: str = ""
    status: Status = "RUNNING"
    mlflow_run_id: str | None = None
    started: float | None = None
    updated: float | None = None
    step: int = 0
    total_steps: int | None = None
    summary: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def is_parent(self) -> bool:
        """Whether this is no training, but the run that the members of a sweep are children of."""
        return MEMBERS in self.tags


def list_runs(root: Path) -> list[RunInfo]:
    """Return the runs at and below `root`, oldest first; none where there is no such directory.

    One below it that can't be read is passed over with a warning: it must not hide the others.

    Raises:
        UsageError: if `root` itself is the directory of a run that can't be read.
    """
    found = []
    for directory in _run_dirs(root):
        try:
            found.append(read_run(directory))
        except UsageError as error:
            if directory == root:
                raise
            _warn_once(str(error))
    return sorted(found, key=lambda run: (run.started or 0, str(run.run_dir)))


@cache
def _warn_once(text: str) -> None:
    _log.warning("passed over: %s", printable(text))  # `runs watch` lists again and again


def _run_dirs(root: Path) -> Iterator[Path]:
    for directory, below, files in os.walk(root):
        if JOURNAL in files:
            below.clear()
            yield Path(directory)
        else:
            below[:] = [name for name in below if name != "mlartifacts"]


def read_run(run_dir: Path, *, whole: bool = True) -> RunInfo:
    """Return what a run's journal says; with `whole=False` without the lines in it that no journal has written.

    Raises:
        UsageError: if the journal or the lock can't be read, or, with `whole`, a line of the journal is not whole.
    """
    try:
        found = _read_journal(run_dir / JOURNAL, whole)
        if found["status"] == "RUNNING" and not in_use(run_dir):
            found["status"] = "DIED"
    except OSError as error:
        raise UsageError(f"{run_dir}: can't read the run: {error.strerror}; give a directory of runs") from error
    cursor = Cursor.load(run_dir)
    return RunInfo(**{"name": run_dir.name} | found, run_dir=run_dir, mlflow_run_id=cursor.run_id if cursor else None)


def _read_journal(path: Path, whole: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"status": "RUNNING", "step": 0, "last": {}}
    last: Record | None = None
    redone = False
    for number, record in _telling(path):
        if whole:
            check(path, number, record)
        elif flaw(record) is not None:
            continue
        last = record
        redone = redone or (record["kind"] == "run" and found["step"] > (record.get("resumed_from_step") or 0))
        _take(found, record)
    if redone:  # only the whole curves tell what is left of what was done twice
        found["last"] = {key: values[-1] for key, (_, values) in collect(path).items()}
    found["summary"] = {k.removeprefix(_SUMMARY): v for k, v in found["last"].items() if k.startswith(_SUMMARY)}
    if last is not None:
        found["updated"] = last["t"]
    return found


def _telling(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield what a listing needs, each with the number of its line.

    That is all but the curves, of which only the last line of each kind is parsed.
    """
    kept: dict[bytes, tuple[int, bytes]] = {}
    for number, (line, _) in enumerate(lines(path), 1):
        if b'"kind": "metrics"' in line[:64] and b'"summary/' not in line:
            kind = line.partition(b'"values": {"')[2].partition(b"/")[0]
            kept.pop(kind, None)  # so that the newest line comes last
            kept[kind] = number, line
            continue
        for last in (*kept.values(), (number, line)):
            yield from _parsed(*last)
        kept.clear()
    for last in kept.values():
        yield from _parsed(*last)


def _parsed(number: int, line: bytes) -> Iterator[tuple[int, Record]]:
    record = parse(line)
    if record is not None:
        yield number, record


def _take(found: dict[str, Any], record: Record) -> None:
    if record["kind"] == "run":
        found |= {"name": record["name"], "uid": record["uid"], "status": "RUNNING"}
        found |= {"total_steps": record["plan"].get("total_steps"), "config": record["config"], "tags": record["tags"]}
        found["step"] = record.get("resumed_from_step") or 0
        found.setdefault("started", record["t"])
    elif record["kind"] == "status":
        found["status"] = record["status"]
        found["step"] = max(found["step"], record.get("step") or 0)  # steps since the last metrics are saved too
    elif record["kind"] == "metrics":
        found["step"] = record["step"]
        found["last"].update({key: float(value) for key, value in record["values"].items()})


def as_json(runs: Sequence[RunInfo]) -> list[dict[str, Any]]:
    """Return runs as plain values for strict JSON; a value that is not finite is null."""
    return [
        asdict(run) | {"run_dir": str(run.run_dir), "summary": _finite(run.summary), "last": _finite(run.last)} for run in runs
    ]


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def as_table(runs: Sequence[RunInfo], extra: Mapping[str, Sequence[str]] | None = None) -> str:
    """Return runs as an aligned table, one a line under a heading; `extra` columns have a text for each run."""
    extra = extra or {}
    heading = ("run", "state", "step", "top-1", "top-5", "img/s", "data wait", "time", *extra, "mlflow run", "directory")
    more = zip(*extra.values(), strict=True) if extra else [()] * len(runs)
    whole = [heading, *((*row[:8], *cells, *row[8:]) for row, cells in zip(map(_row, runs), more, strict=True))]
    rows = [[printable(cell) for cell in row] for row in whole]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heading))]
    numbers = range(2, 8 + len(extra))
    aligned = (
        "  ".join(
            cell.rjust(width) if i in numbers else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in aligned)


def _row(run: RunInfo) -> tuple[str, ...]:
    told = run.summary
    return (
        run.name,
        run.status,
        f"{run.tags[MEMBERS]} members"
        if run.is_parent
        else f"{run.step}/{'?' if run.total_steps is None else run.total_steps}",
        _percent(told.get("val_top1")),
        _percent(told.get("val_top5")),
        f"{told['images_per_s']:.1f}" if "images_per_s" in told else "-",
        _percent(told.get("data_wait"), 1),
        seconds(told["seconds"]) if "seconds" in told else "-",
        run.mlflow_run_id or "-",
        str(run.run_dir),
    )


def _percent(fraction: float | None, digits: int = 2) -> str:
    return "-" if fraction is None else f"{100 * fraction:.{digits}f} %"
