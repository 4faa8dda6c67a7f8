"""Groups of runs pooled over seeds, whether one is really better than another, and which runs nothing beats.

Not here: where the numbers come from. SciPy does the mathematics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Group:
    """Runs pooled; `low` and `high` bound the 95 % interval of the mean (Student's t).

    They and `std` are None where n < 2, a value is not finite, or a seed is there more than once. `left_out` names the
    runs of the group that did not finish, which are not pooled; `again` the seeds that are there more than once, which
    are no independent runs.
    """

    name: str
    values: tuple[float, ...]
    mean: float
    std: float | None
    low: float | None
    high: float | None
    left_out: tuple[str, ...] = ()
    again: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        """Number of runs."""
        return len(self.values)


@dataclass(frozen=True)
class Claim:
    """A group against the baseline.

    `difference` of the means with its 95 % interval, Welch's two-sided `p`, `effect` in pooled standard deviations
    (Hedges' g). All but the difference are None where a group has n < 2, a value that is not finite, or neither has
    any spread: then `verdict` claims nothing and says why.
    """

    group: str
    baseline: str
    difference: float
    low: float | None
    high: float | None
    p: float | None
    effect: float | None
    verdict: str


def pool(name: str, values: Sequence[float]) -> Group:
    """Return a group's mean and the 95 % interval of the mean."""
    from scipy import stats

    array = np.asarray(values, np.float64)
    mean, n = float(array.mean()), len(array)
    if n < 2 or not math.isfinite(mean):
        return Group(name, tuple(values), mean, None, None, None)
    std = float(array.std(ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / math.sqrt(n)
    return Group(name, tuple(values), mean, std, mean - half, mean + half)


def compare(group: Group, baseline: Group, lower_is_better: bool) -> Claim:
    """Test whether a group's mean differs from the baseline's.

    Source: Welch, "The generalization of 'Student's' problem when several different population variances are
    involved", Biometrika 34 (1947).
    """
    difference = group.mean - baseline.mean
    reason = _reason_for_silence(group, baseline)
    if reason:
        return Claim(group.name, baseline.name, difference, None, None, None, None, f"no claim: {reason}")
    from scipy import stats

    found = stats.ttest_ind(group.values, baseline.values, equal_var=False)
    interval = found.confidence_interval(CONFIDENCE)
    p = float(found.pvalue)
    return Claim(
        group.name,
        baseline.name,
        difference,
        float(interval.low),
        float(interval.high),
        p,
        hedges_g(group, baseline),
        _verdict(difference, p, lower_is_better),
    )


def _reason_for_silence(*groups: Group) -> str:
    for group in groups:
        if group.n < 2:
            return f"{group.name} has n = {group.n}; run it with more seeds"
        if not math.isfinite(group.mean):
            return f"{group.name} has runs that diverged"
        if group.again:
            return f"{group.name} has seed {', '.join(group.again)} more than once; run it with other seeds"
    # Not the deviation: that of equal numbers is not always 0.
    spread = any(len(set(group.values)) > 1 for group in groups)
    return "" if spread else "no spread over seeds; check that the seeds differ"


def _verdict(difference: float, p: float, lower_is_better: bool) -> str:
    if p >= 1 - CONFIDENCE:
        return "no difference shown"
    return "better" if (difference < 0) == lower_is_better else "worse"


def hedges_g(group: Group, baseline: Group) -> float:
    """Return the difference of two means in pooled standard deviations, corrected for small n.

    Source: Hedges, "Distribution theory for Glass's estimator of effect size", J. Educ. Stat. 6 (1981).
    """
    degrees = group.n + baseline.n - 2
    squares = (group.n - 1) * (group.std or 0) ** 2 + (baseline.n - 1) * (baseline.std or 0) ** 2
    return (group.mean - baseline.mean) / math.sqrt(squares / degrees) * (1 - 3 / (4 * degrees - 1))


def pareto(quality: Sequence[float], cost: Sequence[float], lower_is_better: bool) -> list[bool]:
    """Return for each run whether no other is at least as good and as cheap, and better in one of them; NaN never is."""
    sign = -1 if lower_is_better else 1
    points = [(sign * q, -c) for q, c in zip(quality, cost, strict=True)]
    return [not any(map(math.isnan, p)) and not any(o[0] >= p[0] and o[1] >= p[1] and o != p for o in points) for p in points]
