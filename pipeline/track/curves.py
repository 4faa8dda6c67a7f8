"""The curves of a run, collected from its journal."""

from bisect import bisect_left
from pathlib import Path

from pipeline.track.journal import Record, read

Points = dict[str, tuple[list[int], list[float]]]
"""For each metric the steps, rising, and the values there."""


def add(points: Points, record: Record) -> None:
    """Add what a "metrics" record holds, and take away what a "run" record says is going to be done over.

    So of a step that was done twice the last value stays: what the weights came from.
    """
    if record["kind"] == "run":
        _rewind(points, (record.get("resumed_from_step") or 0) + 1)
    if record["kind"] != "metrics":
        return
    step = record["step"]
    for key, value in record["values"].items():
        steps, values = points.setdefault(key, ([], []))
        if steps and step <= steps[-1]:
            _cut(steps, values, step)
        steps.append(step)
        values.append(float(value))


def _rewind(points: Points, step: int) -> None:
    for key in list(points):
        _cut(*points[key], step)
        if not points[key][0]:
            del points[key]


def _cut(steps: list[int], values: list[float], step: int) -> None:
    """Remove the points from `step` on."""
    first = bisect_left(steps, step)
    del steps[first:], values[first:]


def collect(journal: Path) -> Points:
    """Return all curves in a journal.

    Raises:
        OSError: if the journal can't be read.
    """
    points: Points = {}
    for record, _ in read(journal):
        add(points, record)
    return points
