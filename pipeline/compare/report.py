"""A comparison: runs with their figures, groups, claims and front, and whether a condition holds for any of them."""

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from pipeline.compare import figures, plot, statistics
from pipeline.compare.condition import Condition
from pipeline.compare.figures import SEED, Figures
from pipeline.compare.read import RunData
from pipeline.compare.statistics import Claim, Group
from pipeline.errors import Regression, UsageError

Cost = Literal["seconds", "device_hours", "target:seconds", "target:device_hours"]

_FINISHED = "FINISHED"


@dataclass(frozen=True)
class Wanted:
    """What to compare: by which metric, up to which target, grouped by what, against which run, at which cost."""

    metric: str = "val/top1"
    target: float | None = None
    group_by: str | None = None
    baseline: str | None = None
    cost: Cost = "seconds"


@dataclass(frozen=True)
class Report:
    """A finished comparison; `figures`, `groups` and `front` have an entry for each run, the front's a truth."""

    wanted: Wanted
    runs: list[RunData]
    figures: list[Figures]
    groups: list[str]
    baseline: str
    pooled: list[Group]
    claims: list[Claim]
    front: list[bool]
    differences: dict[str, dict[str, list[str]]]


def make(runs: Sequence[RunData], wanted: Wanted) -> Report:
    """Compare runs.

    Raises:
        UsageError: if none of them has recorded the metric, or there is no such baseline.
    """
    if not any(wanted.metric in run.curves for run in runs):
        known = sorted({key for run in runs for key in run.curves})
        raise UsageError(f"--metric {wanted.metric}: no run has recorded it; there are {', '.join(known) or 'none at all'}")
    measured = [figures.measure(run, wanted.metric, wanted.target) for run in runs]
    groups = figures.group_names(runs, wanted.group_by)
    baseline = _baseline(runs, groups, wanted.baseline)
    pooled = _pool(runs, measured, groups, wanted.metric)
    lower = figures.lower_is_better(wanted.metric)
    first = next((g for g in pooled if g.name == baseline), None)
    return Report(
        wanted=wanted,
        runs=list(runs),
        figures=measured,
        groups=groups,
        baseline=baseline,
        pooled=pooled,
        claims=[] if first is None else statistics.compare([g for g in pooled if g is not first], first, lower),
        front=statistics.pareto(
            [f.best.get(wanted.metric, math.nan) for f in measured], [_cost(f, wanted.cost) for f in measured], lower
        ),
        differences=figures.differences(runs),
    )


def correction(report: Report) -> str:
    """Return how the claims are corrected for their number, for people; empty where there is one at most."""
    n = max((claim.comparisons for claim in report.claims), default=0)
    return f"corrected for {n} comparisons (Holm)" if n > 1 else ""


def _cost(found: Figures, name: str) -> float:
    value = found.value(name)
    return math.nan if value is None or math.isinf(value) else value


def _baseline(runs: Sequence[RunData], groups: Sequence[str], chosen: str | None) -> str:
    """Return the group of the baseline: the chosen group or run, else the first run's."""
    if chosen is None or chosen in groups:
        return chosen or groups[0]
    meant = list(dict.fromkeys(group for run, group in zip(runs, groups, strict=True) if _is(run, chosen)))
    if len(meant) > 1:
        raise UsageError(
            f"--baseline {chosen}: runs of several groups have this name: {', '.join(meant)}; give a group or an id"
        )
    if meant:
        return meant[0]
    raise UsageError(f"--baseline {chosen}: none of these runs or groups; there are {', '.join(dict.fromkeys(groups))}")


def _is(run: RunData, text: str | None) -> bool:
    return text is not None and (text in (run.name, run.uid, run.source) or (len(text) >= 6 and run.uid.startswith(text)))


def _pool(runs: Sequence[RunData], measured: Sequence[Figures], groups: Sequence[str], metric: str) -> list[Group]:
    """Return the groups with those of their runs that finished; others would be counted for what they never became."""
    pooled = []
    for name in dict.fromkeys(groups):
        members = [(run, f) for run, f, g in zip(runs, measured, groups, strict=True) if g == name]
        whole = [(run, f) for run, f in members if run.status == _FINISHED and metric in f.last]
        left_out = tuple(_left_out(run, f) for run, f in members if (run, f) not in whole)
        if whole:
            seeds = Counter(str(run.config[SEED]) for run, _ in whole if SEED in run.config)
            again = tuple(seed for seed, n in seeds.items() if n > 1)
            group = statistics.pool(name, [f.last[metric] for _, f in whole])
            if again:  # runs that are no independent ones say nothing about the spread
                group = replace(group, std=None, low=None, high=None)
            pooled.append(replace(group, left_out=left_out, again=again))
    return pooled


def _left_out(run: RunData, found: Figures) -> str:
    return f"{run.name} ({run.status} at {found.steps}/{found.total_steps or '?'})"


def check(report: Report, condition: Condition) -> None:
    """Raise if the condition holds for any group against the baseline's; a group's figures are means over its runs.

    Where all runs are one group, each stands for itself, under the mark that the table gives it, against the baseline's
    run, or the first.

    Raises:
        Regression: naming every group for which it holds.
        UsageError: if a figure is missing or not a number, or there is nothing to compare with the baseline.
    """
    names, base = report.groups, report.baseline
    if len(set(names)) == 1:
        names = [f"{plot.mark(i)} ({label(report.runs, run)})" for i, run in enumerate(report.runs)]
        base = next((n for n, run in zip(names, report.runs, strict=True) if _is(run, report.wanted.baseline)), names[0])
    others = [name for name in dict.fromkeys(names) if name != base]
    if not others:
        raise UsageError(f"--fail-if {condition.text!r}: only the baseline is here; give a second run")

    _check_fit(report, condition)

    def look(group: str, figure: str) -> float:
        members = [f.value(figure) for f, name in zip(report.figures, names, strict=True) if name == group]
        there = [v for v in members if v is not None]
        if len(there) < len(members):
            raise UsageError(f"--fail-if {condition.text!r}: {group} has no {figure}; {_known(report)}")
        mean = float(np.mean(there))
        if math.isnan(mean):
            raise UsageError(
                f"--fail-if {condition.text!r}: {group}: {figure} is not a number, which is no pass; look at the run"
            )
        return mean

    for group in (*others, base):  # each, also those that the condition would not come to
        for figure in condition.names:
            look(group, figure)
    _check_baseline(condition, base, [look(base, figure) for figure in condition.names])
    try:
        bad = [group for group in others if condition.holds(partial(look, group), partial(look, base))]
    except ZeroDivisionError as error:
        raise UsageError(f"--fail-if {condition.text!r}: divides by zero; compare with a product instead") from error
    if bad:
        told = "; ".join(f"{g}: {', '.join(f'{n} = {look(g, n):.6g}' for n in condition.names)}" for g in bad)
        of_base = ", ".join(f"{n} = {look(base, n):.6g}" for n in condition.names)
        raise Regression(f"--fail-if {condition.text!r} holds for {told} (baseline {base}: {of_base})")


def label(runs: Sequence[RunData], run: RunData) -> str:
    """Return a run's name, with the beginning of its id where others have the same name."""
    return f"{run.name} {run.uid[:6]}" if sum(other.name == run.name for other in runs) > 1 else run.name


def _check_fit(report: Report, condition: Condition) -> None:
    """Refuse to judge what can't be judged, which would look like a pass."""
    if report.wanted.target is None and any(name.startswith("target:") for name in condition.names):
        raise UsageError(f"--fail-if {condition.text!r}: needs --target, the value of {report.wanted.metric} to reach")
    if unfinished := [_left_out(r, f) for r, f in zip(report.runs, report.figures, strict=True) if r.status != _FINISHED]:
        raise UsageError(f"--fail-if {condition.text!r}: not finished, which is no pass: {', '.join(unfinished)}")


def _check_baseline(condition: Condition, name: str, figures: Sequence[float]) -> None:
    """Refuse a baseline that nothing can be worse than."""
    if "baseline" in condition.text and any(map(math.isinf, figures)):
        raise UsageError(
            f"--fail-if {condition.text!r}: the baseline {name} never reached the target, so that nothing can be worse; "
            "choose another --target or --baseline"
        )


def _known(report: Report) -> str:
    known = sorted(set(report.figures[0].last) | {"seconds", "device_hours", "images_per_s", "data_wait"})
    return f"there are {', '.join(known)}, best:METRIC, target:seconds"


def as_json(report: Report) -> dict[str, Any]:
    """Return the comparison for strict JSON: what is not finite is null."""
    rows = [
        {"name": run.name, "uid": run.uid, "source": run.source, "status": run.status, "group": group, "pareto": on_front}
        | asdict(found)
        for run, found, group, on_front in zip(report.runs, report.figures, report.groups, report.front, strict=True)
    ]
    found = {
        "metric": report.wanted.metric,
        "lower_is_better": figures.lower_is_better(report.wanted.metric),
        "target": report.wanted.target,
        "cost": report.wanted.cost,
        "baseline": report.baseline,
        "runs": rows,
        "groups": [asdict(group) | {"n": group.n} for group in report.pooled],
        "claims": [asdict(claim) for claim in report.claims],
        "correction": correction(report),
        "differences": report.differences,
    }
    return finite(found)  # type: ignore[no-any-return]


def finite(value: Any) -> Any:
    """Return plain values with null for every number that is not finite, which strict JSON lacks."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_csv(report: Report) -> str:
    """Return one line a run under a heading: identity, figures, last values of all metrics, differing config keys."""
    rows = []
    for i, row in enumerate(as_json(report)["runs"]):
        target = row.pop("target") or {}
        last, best = row.pop("last"), row.pop("best")
        row |= {f"target_{key}": target.get(key) for key in ("steps", "seconds", "device_hours")}
        row |= {f"last:{k}": v for k, v in last.items()} | {f"best:{k}": v for k, v in best.items()}
        row |= {f"config:{key}": texts[i] for key, texts in report.differences["config"].items()}
        rows.append(row)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
