"""A comparison as text for a terminal: tables and an overlay of curves."""

import math
import re
from collections.abc import Sequence

from pipeline import units
from pipeline.compare import plot
from pipeline.compare.figures import Figures
from pipeline.compare.report import Report, correction, label
from pipeline.output import printable

_FRACTION = re.compile(r"(^|/)(top\d|best_top\d|data_wait|tracking_wait|accuracy)$")
_WIDEST = 36  # characters of a value in the table of differences


def render(report: Report, width: int = 72) -> str:
    """Return the whole comparison; curves are `width` characters wide."""
    parts = [_runs(report), _pareto(report), _groups(report), _differences(report), _curves(report, width)]
    return "\n\n".join(part for part in parts if part)


def number(metric: str, value: float | None) -> str:
    """Return a metric's value for people: fractions in per cent."""
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if _FRACTION.search(metric) else f"{value:.4g}"


def table(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Return rows (the first is the heading) in columns, aligned to the right but for those in `left`."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    aligned = (
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in aligned)


def _runs(report: Report) -> str:
    metric, target = report.wanted.metric, report.wanted.target
    reached = [] if target is None else [f"steps to {number(metric, target)}", "time to it", "device-h to it"]
    heading = ["", "run", "state", "steps", f"last {metric}", "best", "at step", *reached]
    heading += ["time", "device-h", "median img/s", "median data wait"]
    rows = [heading]
    for mark, run, found in zip(_marks(report), report.runs, report.figures, strict=True):
        to_target = [] if target is None else _target(found)
        rows.append(
            [
                mark,
                label(report.runs, run),
                run.status,
                f"{found.steps}/{found.total_steps or '?'}",
                number(metric, found.last.get(metric)),
                number(metric, found.best.get(metric)),
                "-" if found.best_step is None else str(found.best_step),
                *to_target,
                *_cost(found.seconds, found.device_hours),
                "-" if found.images_per_s is None else f"{found.images_per_s:,.0f}",
                number("data_wait", found.data_wait),
            ]
        )
    return table(rows, left=(0, 1, 2))


def _marks(report: Report) -> list[str]:
    return [plot.mark(i) for i in range(len(report.runs))]


def _target(found: Figures) -> list[str]:
    if found.target is None:
        return ["never", "-", "-"]
    return [str(found.target.steps), *_cost(found.target.seconds, found.target.device_hours)]


def _cost(seconds: float | None, device_hours: float | None) -> list[str]:
    if seconds is None or device_hours is None or math.isnan(seconds):
        return ["-", "-"]
    return [units.seconds(seconds), f"{device_hours:.3g}"]


def _pareto(report: Report) -> str:
    front = [
        f"{mark} ({label(report.runs, run)})"
        for mark, run, on in zip(_marks(report), report.runs, report.front, strict=True)
        if on
    ]
    if len(report.runs) < 2 or not front:
        return ""
    return f"On the Pareto front of best {report.wanted.metric} against {report.wanted.cost}: {', '.join(front)}"


def _groups(report: Report) -> str:
    if not report.pooled or len(report.runs) == len(report.pooled) == 1:
        return ""
    metric = report.wanted.metric
    heading = [
        "group",
        "n",
        f"mean {metric}",
        "95 % interval",
        "difference",
        "95 % interval",
        "p (Welch)",
        "p (Holm)",
        "g (Hedges)",
        "",
    ]
    claims = {claim.group: claim for claim in report.claims}
    rows = [heading]
    for group in report.pooled:
        claim = claims.get(group.name)
        about = [""] * 5 + ["baseline" if group.name == report.baseline else ""]
        if claim is not None:
            about = [
                number(metric, claim.difference),
                _interval(metric, claim.low, claim.high),
                "-" if claim.p is None else f"{claim.p:.3g}",
                "-" if claim.corrected is None else f"{claim.corrected:.3g}",
                "-" if claim.effect is None else f"{claim.effect:.2f}",
                claim.verdict,
            ]
        mean = number(metric, group.mean)
        rows.append([group.name, str(group.n), mean, _of_mean(metric, group.low, group.high), *about])
    corrected = correction(report)
    if not corrected:
        rows = [[*row[:7], *row[8:]] for row in rows]
    intervals = "their intervals hold all together (Bonferroni, stricter than Holm)"
    notes = [f"Differences: {corrected}; {intervals}"] if corrected else []
    left_out = [text for group in report.pooled for text in group.left_out]
    notes += [f"Not finished, left out of the groups: {', '.join(left_out)}"] if left_out else []
    return "\n".join([table(rows, left=(0, len(rows[0]) - 1)), *notes])


def _of_mean(metric: str, low: float | None, high: float | None) -> str:
    """Return the interval of a mean; of an accuracy without what none can be."""
    if low is not None and high is not None and _FRACTION.search(metric):
        low, high = max(low, 0.0), min(high, 1.0)
    return _interval(metric, low, high)


def _interval(metric: str, low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{number(metric, low).removesuffix(' %')} to {number(metric, high)}"


def _differences(report: Report) -> str:
    parts = []
    for kind, rows in report.differences.items():
        shown = [[f"{kind} that differs" if kind != "code" else "code that differs", *_marks(report)]]
        shown += [[key, *(_cut(text) for text in texts)] for key, texts in rows.items()]
        if rows:
            parts.append(table(shown, left=range(len(shown[0]))))
    return (
        "\n\n".join(parts)
        if parts
        else ("Configuration and what is recorded of code and environment are the same." if len(report.runs) > 1 else "")
    )


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def _curves(report: Report, width: int) -> str:
    metric = report.wanted.metric
    known = [run.curves.get(metric) for run in report.runs]
    empty = next(curve for curve in known if curve is not None)
    drawn = plot.draw([(c.steps, c.values) if c is not None else (empty.steps[:0], empty.values[:0]) for c in known], width)
    return f"{metric} against steps\n{drawn}" if drawn else ""
