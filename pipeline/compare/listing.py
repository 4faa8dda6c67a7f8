"""The runs of a folder filtered, sorted, grouped, and followed while they live."""

import math
import operator
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import units
from pipeline.compare.text import number, table
from pipeline.errors import UsageError
from pipeline.track.runs import RunInfo, as_table, list_runs

_WHERE = re.compile(r"^\s*([^<>=!\s]+)\s*(<=|>=|!=|==|=|<|>)\s*(.*?)\s*$")
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
}
_BAR = 20  # characters
_CLEAR = "\033[H\033[J"  # cursor to the top left, and nothing below it


@dataclass(frozen=True)
class Query:
    """Which runs to list, in which order, under which headings; `columns` are shown besides the usual ones."""

    where: tuple[str, ...] = ()
    sort: str | None = None
    reverse: bool = False
    group_by: str | None = None
    columns: tuple[str, ...] = ()


def value(run: RunInfo, key: str) -> Any:
    """Return what a key means for a run: state, name, step, a metric, a config key, a tag or tag:KEY; None if it has none."""
    if key.startswith("tag:"):
        return run.tags.get(key.removeprefix("tag:"))
    own = {"state": run.status, "status": run.status, "name": run.name, "step": run.step, "started": run.started}
    for place in (own, run.last, run.summary, run.config, run.tags):
        if key in place:
            return place[key]
    return None


def choose(runs: Sequence[RunInfo], query: Query) -> list[RunInfo]:
    """Return the runs that fulfil every condition, sorted; those without the key come last.

    Raises:
        UsageError: if a condition is none, or no run has a key.
    """
    found = list(runs)
    for text in query.where:
        _check_number(text)
        found = [run for run in found if _fulfils(run, *_parsed(text))]
    for key in (query.sort, query.group_by, *query.columns, *(_parsed(text)[0] for text in query.where)):
        if key is not None and runs and all(value(run, key) is None for run in runs):
            raise UsageError(f"{key}: no run has it; name a metric (val/top1), a config key (optim.lr), a tag or state")
    if query.sort is not None:
        known = [run for run in found if not _missing(value(run, query.sort))]
        known.sort(key=lambda run: _order(value(run, query.sort or "")), reverse=query.reverse)
        found = known + [run for run in found if _missing(value(run, query.sort))]
    return found


def _parsed(text: str) -> tuple[str, str, str]:
    match = _WHERE.match(text)
    if match is None:
        raise UsageError(
            f"--where {text!r}: write KEY=VALUE, KEY!=VALUE or KEY<NUMBER, such as 'val/top1>0.9' or state=FINISHED"
        )
    return match[1], match[2], match[3]


def _missing(found: Any) -> bool:
    return found is None or (isinstance(found, float) and math.isnan(found))


def _check_number(text: str) -> None:
    _, sign, wanted = _parsed(text)
    if sign in ("<", "<=", ">", ">=") and _number(wanted) is None:
        raise UsageError(f"--where {text!r}: {wanted!r} is no number; write for example 'val/top1>0.9' or 'val/top1>90%'")


def _number(text: str) -> float | None:
    """Return the number that a text is, per cent included; None if it is none."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None


def _fulfils(run: RunInfo, key: str, sign: str, wanted: str) -> bool:
    found, compare = value(run, key), _COMPARE[sign]
    if found is None:
        return False
    number = _number(wanted)
    if number is not None and isinstance(found, int | float) and not isinstance(found, bool):
        return compare(float(found), number)
    return sign in ("=", "==", "!=") and compare(_text(found), wanted)


def _text(found: Any) -> str:
    if found is None or isinstance(found, bool):
        return {None: "null", True: "true", False: "false"}[found]
    return str(found)


def _order(found: Any) -> tuple[int, float, str]:
    """Numbers before texts, each among themselves."""
    try:
        return 0, float(found), ""
    except (TypeError, ValueError):
        return 1, 0.0, str(found)


def render(runs: Sequence[RunInfo], query: Query) -> str:
    """Return the table, or one for each group under its heading."""
    extra = {key: [_cell(key, value(run, key)) for run in runs] for key in dict.fromkeys([*query.columns, *_sorting(query)])}
    if query.group_by is None:
        return as_table(runs, extra)
    parts = []
    for name in dict.fromkeys(_text(value(run, query.group_by)) for run in runs):
        places = [i for i, run in enumerate(runs) if _text(value(run, query.group_by)) == name]
        inside = as_table([runs[i] for i in places], {key: [cells[i] for i in places] for key, cells in extra.items()})
        parts.append(f"{query.group_by}={name} ({units.count(len(places), 'run')})\n{inside}")
    return "\n\n".join(parts)


def _sorting(query: Query) -> list[str]:
    return [] if query.sort in (None, "state", "status", "name", "step") else [str(query.sort)]


def _cell(key: str, found: Any) -> str:
    return number(key, found) if isinstance(found, float) else _text(found)


def watch(root: Path, every_s: float, clear: bool) -> None:
    """Show the living runs below `root` until none lives any more, or until interrupted.

    With `clear` the screen is drawn anew each time; without, a state is printed when something has changed.
    """
    before, seen = "", set[str]()
    for living in _living(root, every_s, seen):
        shown = progress(living)
        if shown != before:
            sys.stdout.write(f"{_CLEAR if clear else ''}{shown}\n")
            sys.stdout.flush()
        before = shown


def _living(root: Path, every_s: float, seen: set[str]) -> Iterator[list[RunInfo]]:
    """Yield, every `every_s` seconds, the runs that live or have lived since the first time; stop when none lives."""
    while True:
        runs = [run for run in list_runs(root) if not run.is_parent]
        seen |= {run.uid for run in runs if run.status == "RUNNING"}
        yield [run for run in runs if run.uid in seen]
        if not any(run.status == "RUNNING" for run in runs):
            return
        time.sleep(every_s)


def progress(runs: Sequence[RunInfo]) -> str:
    """Return a line for each run: state, progress, speed, time left and the last values."""
    if not runs:
        return "no run is training here"
    heading = ("run", "state", "", "step", "img/s", "left", "train loss", "val top-1", "directory")
    return table([heading, *(_line(run) for run in runs)], left=(0, 1, 2, 8))


def _line(run: RunInfo) -> tuple[str, ...]:
    done = run.step / run.total_steps if run.total_steps else 0.0
    filled = round(done * _BAR)
    last, left = run.last, time_left(run)
    return (
        run.name,
        run.status,
        f"[{'#' * filled}{'.' * (_BAR - filled)}] {done:4.0%}",
        f"{run.step}/{run.total_steps or '?'}",
        f"{last['perf/images_per_s']:,.0f}" if "perf/images_per_s" in last else "-",
        "-" if left is None else units.seconds(left),
        number("train/loss", last.get("train/loss")),
        number("val/top1", last.get("val/top1")),
        str(run.run_dir),
    )


def time_left(run: RunInfo) -> float | None:
    """Return the seconds that a run still needs at its pace so far; None if it has not got going or has ended."""
    active = run.last.get("time/active_s")
    if run.status != "RUNNING" or not active or not run.step or not run.total_steps:
        return None
    return active / run.step * (run.total_steps - run.step)
