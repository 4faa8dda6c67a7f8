"""How far a journal has been brought into MLflow: the cursor file, and the journal cut into pieces to ship.

A pure function of the journal's text, so that shipping again sends the same points; no MLflow here.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, TypeAdapter

from pipeline.output import printable
from pipeline.track.journal import Record, flaw, milliseconds, records, regular
from pipeline.track.refusal import one_line

CURSOR = "mlflow.json"
# MLflow's limit on the metrics of one call. Source: https://mlflow.org/docs/latest/rest-api.html#log-batch
POINTS_PER_CALL = 1000
_LARGEST = 16 << 20  # bytes
_log = logging.getLogger(__name__)
_SHIPPED_EVENTS = ("run", "status", "warning", "artifact", "model")


@dataclass(frozen=True)
class Point:
    """One value of one metric: `step` in optimiser steps, `t_ms` in unix milliseconds."""

    key: str
    value: float
    t_ms: int
    step: int


@dataclass(frozen=True)
class Piece:
    """A stretch of the journal that ends at byte `offset`: new points, then perhaps one event."""

    points: tuple[Point, ...]
    event: Record | None
    offset: int
    high_water: dict[str, int]


@dataclass(frozen=True)
class Cursor:
    """Everything before byte `offset` is in MLflow's run `run_id`; `high_water` is the last step of each metric there.

    Except for what is in `failed`: `{"event": record, "reason": text}` of each file that the store refused to take, and in
    `refused`: what it will never take, such as a tag, each with the reason.
    """

    uri: str
    experiment: str
    run_id: str | None = None
    offset: Annotated[int, Field(ge=0, lt=2**63)] = 0
    high_water: dict[str, int] = field(default_factory=dict)
    failed: list[Record] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, run_dir: Path, name: str = CURSOR) -> Self | None:
        """Return the cursor of a run, or None where there is none.

        One that is not whole counts as none, with a warning: to ship everything again does no harm.
        """
        try:
            with regular(run_dir / name) as file:
                found = TypeAdapter(cls).validate_json(file.read(_LARGEST), strict=True)
            if not all(map(_is_failure, found.failed)):
                raise ValueError("what is in `failed` is not whole")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _warn_once(run_dir / name, one_line(error))
            return None
        return found

    def save(self, run_dir: Path, name: str = CURSOR) -> None:
        """Write the cursor, at once and whole.

        Raises:
            OSError: if the directory can't be written, or a directory has the file's name.
        """
        temporary = run_dir / f"{name}.tmp"
        temporary.write_text(json.dumps(asdict(self), allow_nan=False))
        temporary.replace(run_dir / name)

    def after(self, piece: Piece) -> "Cursor":
        """Return the cursor once `piece` is shipped."""
        return replace(self, offset=piece.offset, high_water=piece.high_water)

    def fits(self, journal: Path) -> bool:
        """Return whether the cursor stands at the end of a line: a power cut can shorten a journal."""
        if self.offset == 0:
            return True
        with regular(journal) as file:
            file.seek(self.offset - 1)
            return file.read(1) == b"\n"


def aside(uri: str) -> str:
    """Return the name of the cursor file for a store beside the run's own; `uri` is without credentials."""
    return f"mlflow-{hashlib.sha256(uri.encode()).hexdigest()[:12]}.json"


def pieces(journal: Path, offset: int, high_water: dict[str, int]) -> Iterator[Piece]:
    """Cut the complete lines from byte `offset` on into pieces of about `POINTS_PER_CALL` points.

    Steps that a resumed run does over are left out: a point is new only if its step is above the last one of its name.

    Raises:
        OSError: if the journal can't be read.
    """
    points: list[Point] = []
    high = dict(high_water)
    shipped = offset
    for record, end in records(journal, offset):
        event = record if record is not None and record["kind"] in _SHIPPED_EVENTS else None
        if record is not None and record["kind"] == "metrics":
            new = _new_points(record, high)
            high |= {point.key: point.step for point in new}
            points += new
        offset = end
        if event is not None or len(points) >= POINTS_PER_CALL:
            yield Piece(tuple(points), event, offset, dict(high))
            points, shipped = [], offset
    if offset > shipped:
        yield Piece(tuple(points), None, offset, dict(high))


@lru_cache(maxsize=1000)
def _warn_once(path: Path, why: str) -> None:
    _log.warning("%s: damaged and taken for missing: %s; what it stood for is sent again", printable(str(path)), printable(why))


def _is_failure(found: Record) -> bool:
    event = found.get("event")
    return (
        isinstance(event, dict)
        and isinstance(found.get("reason"), str)
        and event.get("kind") in ("artifact", "model")
        and "t" in event
        and flaw(event) is None
    )


def _new_points(record: Record, high: dict[str, int]) -> list[Point]:
    t_ms, step = milliseconds(record), record["step"]
    return [Point(key, float(value), t_ms, step) for key, value in record["values"].items() if step > high.get(key, -1)]
