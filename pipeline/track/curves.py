"""The curves of a run, collected from its journal.

Not here: what is drawn or computed from them.
"""

from pathlib import Path

from pipeline.track.journal import Record, read

Points = dict[str, tuple[list[int], list[float]]]
"""For each metric the steps, rising, and the values there."""


def add(points: Points, record: Record) -> None:
    """Add what a "metrics" record holds; steps that a resumed run does over count once, as in MLflow."""
    step = record["step"]
    for key, value in record["values"].items():
        steps, values = points.setdefault(key, ([], []))
        if not steps or step > steps[-1]:
            steps.append(step)
            values.append(float(value))


def collect(journal: Path) -> Points:
    """Return all curves in a journal.

    Raises:
        OSError: if the journal can't be read.
    """
    points: Points = {}
    for record, _ in read(journal):
        if record["kind"] == "metrics":
            add(points, record)
    return points
