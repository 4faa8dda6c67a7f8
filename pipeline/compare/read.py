"""Runs as a comparison needs them: their curves as arrays, configuration, code, environment; read from journals."""

import hashlib
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.track.curves import Points, add
from pipeline.track.journal import JOURNAL, Record, check, lines, parse
from pipeline.track.lock import in_use
from pipeline.track.mapping import MEMBERS

_log = logging.getLogger(__name__)
Floats = NDArray[np.float64]
ACTIVE, TRAINING, AT_EVALUATION = "time/active_s", "time/train_s", "time/val_s"
AT_END = "summary/seconds"
_ENVIRONMENT, _DIFF = "environment.json", "code.diff"  # as `train.outcome` calls them, which would import torch


@dataclass(frozen=True)
class Curve:
    """The n points of a metric, in the order of their steps.

    Attributes:
        steps: float64[n], optimiser steps done, rising.
        values: float64[n].
    """

    steps: Floats
    values: Floats


@dataclass(frozen=True)
class RunData:
    """A run with everything it recorded.

    `worlds` says from which step on how many processes trained: (step, processes), rising.
    `datasets` holds the digests of what was read: {"training" | "validation": digest}.
    `source` is the run directory, or the address of an MLflow store and the run's id there.
    """

    name: str
    uid: str
    source: str
    status: str
    config: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    worlds: tuple[tuple[float, int], ...] = ((0.0, 1),)
    datasets: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_parent(self) -> bool:
        """Whether this is no training, but the run that the members of a sweep are children of."""
        return MEMBERS in self.tags

    @property
    def step(self) -> int:
        """The last optimiser step of which anything is recorded."""
        return int(max((curve.steps[-1] for curve in self.curves.values()), default=0))

    def seconds(self, steps: Floats, *, ended: bool = False) -> Floats:
        """Return the active seconds (training, evaluation and saving; no time in a queue) that float64[n] steps took.

        In a straight line between recorded points. NaN without any record of time. With `ended`, what came after the last
        step, such as storing the weights, is counted with it; without, the clock is read as the step was evaluated.
        """
        first = self.curves.get(ACTIVE) or self.curves.get(TRAINING)
        clocks = [first, self.curves.get(AT_EVALUATION)]
        clocks += [self.curves.get(AT_END)] if ended or clocks == [None, None] else []
        known = dict.fromkeys([0.0], 0.0)
        for clock in clocks:  # at the same step the later ones have been read later
            known |= {} if clock is None else dict(zip(clock.steps.tolist(), clock.values.tolist(), strict=True))
        if len(known) == 1:
            return np.full(len(steps), np.nan)
        places = np.array(sorted(known))
        found: Floats = np.interp(steps, places, [known[place] for place in places.tolist()])
        return found

    def device_hours(self, step: float, *, ended: bool = False) -> float:
        """Return the hours up to `step`, summed over the processes (one for each GPU) that were training then.

        `ended` as for `seconds`.
        """
        starts = [max(0.0, min(start, step)) for start, _ in self.worlds]
        seconds = self.seconds(np.array([0.0, *starts[1:], step]), ended=ended)
        return float(sum(np.diff(seconds) * [size for _, size in self.worlds])) / 3600


def read_journal(run_dir: Path) -> RunData:
    """Read a run directory.

    Of steps that a resumed run did over the last values count: what the weights came from.

    Raises:
        UsageError: if the journal can't be read, holds no run or a line that is not whole.
    """
    try:
        found = _collect(run_dir / JOURNAL)
        dead = found.status == "RUNNING" and not in_use(run_dir)
    except OSError as error:
        raise UsageError(f"{run_dir}: can't read {JOURNAL}: {error.strerror}; give the directory of a run") from error
    run = found.run
    if run is None:
        raise UsageError(f"{run_dir}: the run died before it began; leave it out")
    return RunData(
        name=run["name"],
        uid=run["uid"],
        source=str(run_dir),
        status="DIED" if dead else found.status,
        config=run["config"],
        plan=run["plan"],
        tags={key: str(text) for key, text in run["tags"].items()} | _recorded(run_dir),
        curves=curves(found.points),
        worlds=tuple(found.worlds),
        datasets=_digests(run.get("datasets")),
    )


def _digests(datasets: Any) -> dict[str, str]:
    """Return the digests of the data sets of a "run" record; of one that has none, or something else there, none."""
    there = [one for one in datasets if isinstance(one, dict)] if isinstance(datasets, list) else []
    return {str(one["context"]): str(one["digest"]) for one in there if "context" in one and "digest" in one}


def _recorded(run_dir: Path) -> dict[str, str]:
    """Return what the run directory tells of code and environment beyond the tags, in the form of tags."""
    found = {}
    with suppress(OSError):
        found["git.diff"] = hashlib.sha256((run_dir / _DIFF).read_bytes()).hexdigest()[:12]
    with suppress(OSError, ValueError, AttributeError):  # of one that is no JSON object too
        told = json.loads((run_dir / _ENVIRONMENT).read_text(encoding="utf-8"))
        found |= {f"package.{name}": str(version) for name, version in told.get("packages", {}).items()}
        found |= {key: str(told[key]) for key in ("driver", "cuda", "cudnn") if told.get(key)}
    return found


def curves(points: Points) -> dict[str, Curve]:
    """Return lists of steps and values as arrays."""
    return {key: Curve(np.array(steps, np.float64), np.array(values, np.float64)) for key, (steps, values) in points.items()}


@dataclass
class _Found:
    """What a journal holds; the last "run" record counts."""

    run: Record | None = None
    status: str = "RUNNING"
    points: Points = field(default_factory=dict)
    worlds: list[tuple[float, int]] = field(default_factory=list)

    def take(self, record: Record) -> None:
        add(self.points, record)
        if record["kind"] == "status":
            self.status = record["status"]
        elif record["kind"] == "run":
            start = float(record.get("resumed_from_step") or 0)
            size = int(record["plan"].get("world_size") or 1)
            self.run, self.status = record, "RUNNING"
            self.worlds = [*(w for w in self.worlds if w[0] < start), (start, size)]


def _collect(journal: Path) -> _Found:
    found = _Found()
    for number, (line, _) in enumerate(lines(journal), 1):
        record = parse(line)
        if record is None:
            _log.warning("%s: line %d is no journal line and is passed over", journal, number)
            continue
        check(journal, number, record)
        found.take(record)
    return found
