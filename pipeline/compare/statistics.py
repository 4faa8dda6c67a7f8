"""Groups of runs pooled over seeds, whether one is really better than another, and which runs nothing beats.

SciPy does the mathematics.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

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
    (Hedges' g). Of `comparisons` claims in one table `corrected` is what counts: Holm's p, so that the chance of any
    false claim is 5 % in all; the intervals then hold all together (Bonferroni). All but the difference are None where
    a group has n < 2, a value that is not finite, or neither has any spread: then `verdict` claims nothing and says why.
    """

    group: str
    baseline: str
    difference: float
    low: float | None
    high: float | None
    p: float | None
    effect: float | None
    verdict: str
    corrected: float | None = None
    comparisons: int = 1


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


def compare(groups: Sequence[Group], baseline: Group, lower_is_better: bool) -> list[Claim]:
    """Test whether the mean of each group differs from the baseline's, corrected for how many are tested.

    Holm's correction of Welch's tests, not Dunnett's test, which needs the same spread in all groups.

    Source: Welch, "The generalization of 'Student's' problem when several different population variances are
    involved", Biometrika 34 (1947); Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist.
    6 (1979).
    """
    n = sum(not _reason_for_silence(group, baseline) for group in groups)
    claims = [_compare(group, baseline, n) for group in groups]
    tested = [claim for claim in claims if claim.p is not None]
    corrected = dict(zip((c.group for c in tested), holm(np.array([c.p for c in tested])).tolist(), strict=True))
    return [
        claim
        if claim.p is None
        else replace(
            claim,
            corrected=corrected[claim.group],
            verdict=_verdict(claim.difference, corrected[claim.group], lower_is_better),
        )
        for claim in claims
    ]


def _compare(group: Group, baseline: Group, comparisons: int) -> Claim:
    difference = group.mean - baseline.mean
    reason = _reason_for_silence(group, baseline)
    if reason:
        return Claim(group.name, baseline.name, difference, None, None, None, None, f"no claim: {reason}", None, comparisons)
    from scipy import stats

    found = stats.ttest_ind(group.values, baseline.values, equal_var=False)
    interval = found.confidence_interval(1 - (1 - CONFIDENCE) / comparisons)
    return Claim(
        group=group.name,
        baseline=baseline.name,
        difference=difference,
        low=float(interval.low),
        high=float(interval.high),
        p=float(found.pvalue),
        effect=hedges_g(group, baseline),
        verdict="",
        comparisons=comparisons,
    )


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Holm's corrected p-values of float64[..., m]; the m of the last axis are one family."""
    m = p.shape[-1]
    order = np.argsort(p, axis=-1)
    grown = np.take_along_axis(p, order, -1) * np.arange(m, 0, -1)
    found = np.empty_like(p)
    np.put_along_axis(found, order, np.minimum(np.maximum.accumulate(grown, axis=-1), 1), -1)
    return found


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
