import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.compare import statistics
from pipeline.compare.statistics import hedges_g, holm, pareto, pool


def compare(group, baseline, lower_is_better):
    (claim,) = statistics.compare([group], baseline, lower_is_better)
    return claim


def test_a_mean_and_its_interval():
    # t(0.975, 2 degrees) = 4.302653, from any table of Student's t
    group = pool("g", [1.0, 2.0, 3.0])
    assert (group.n, group.mean, group.std) == (3, 2.0, 1.0)
    assert group.low == pytest.approx(2 - 4.302653 / math.sqrt(3))
    assert group.high == pytest.approx(2 + 4.302653 / math.sqrt(3))


def test_welch_by_the_formula():
    base, group = pool("base", [27.5, 21.0, 19.0, 23.6, 17.0]), pool("new", [27.1, 22.0, 20.8, 23.4, 23.4, 23.5])
    claim = compare(group, base, lower_is_better=False)
    a, b = group.std**2 / 6, base.std**2 / 5
    t, degrees = (group.mean - base.mean) / math.sqrt(a + b), (a + b) ** 2 / (a**2 / 5 + b**2 / 4)
    half = (claim.high - claim.low) / 2
    assert claim.difference == pytest.approx(group.mean - base.mean)
    assert claim.low + half == pytest.approx(claim.difference)
    # Student's t with about 5.9 degrees: the 97.5 % quantile lies between those of 5 (2.571) and 6 (2.447) degrees
    assert 5 < degrees < 7 and 2.36 < half / math.sqrt(a + b) < 2.571
    assert t < 2 and claim.p > 0.05 and claim.verdict == "no difference shown"


def test_a_clear_difference_is_better_or_worse_by_the_metrics_direction():
    base, group = pool("base", [0.70, 0.71, 0.72]), pool("new", [0.80, 0.81, 0.82])
    claim = compare(group, base, lower_is_better=False)
    assert claim.p < 0.001 and claim.verdict == "better"
    assert compare(group, base, lower_is_better=True).verdict == "worse"
    # g = 0.1 / 0.01 * (1 - 3 / (4 * 4 - 1))
    assert hedges_g(group, base) == pytest.approx(8.0)


def test_single_runs_and_equal_runs_claim_nothing():
    one, two, same = pool("one", [0.7]), pool("two", [0.8, 0.9]), pool("same", [0.7, 0.7])
    for claim in (compare(one, two, False), compare(two, one, False)):
        assert claim.p is claim.low is claim.effect is None
        assert claim.verdict == "no claim: one has n = 1; run it with more seeds"
    assert compare(pool("nan", [0.7, math.nan]), two, False).verdict == "no claim: nan has runs that diverged"
    assert "no spread" in compare(same, pool("base", [0.6, 0.6]), False).verdict


def test_the_front_of_four_runs():
    quality, cost = [0.7, 0.8, 0.75, math.nan], [1.0, 3.0, 3.0, 0.1]
    assert pareto(quality, cost, lower_is_better=False) == [True, True, False, False]
    assert pareto(quality, cost, lower_is_better=True) == [True, False, False, False]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_whoever_is_not_on_the_front_is_beaten_by_one_who_is(points):
    front = pareto([q for q, _ in points], [c for _, c in points], lower_is_better=False)
    assert any(front)
    on = [p for p, there in zip(points, front, strict=True) if there]
    for point, there in zip(points, front, strict=True):
        beaten = any(q >= point[0] and c <= point[1] and (q, c) != point for q, c in on)
        assert there != beaten


def test_equal_values_have_no_spread_whatever_their_rounding():
    groups = [pool("a", [0.7] * 3), pool("b", [0.8] * 3)]
    assert groups[0].std != 0, "the rounding that this is about is gone"
    assert compare(groups[1], groups[0], lower_is_better=False).verdict.startswith("no claim: no spread over seeds")


@pytest.mark.parametrize("spread", [np.ones(8), np.linspace(0.5, 2, 8)])
def test_of_eight_equal_groups_one_in_twenty_tables_makes_a_false_claim(spread):
    runs = np.random.default_rng(1).normal(size=(4000, 8, 5)) * spread[:, None]
    p = stats.ttest_ind(runs[:, 1:], runs[:, :1], axis=-1, equal_var=False).pvalue
    alone, family = (p < 0.05).any(-1).mean(), (holm(p) < 0.05).any(-1).mean()
    assert alone > 0.15  # what would be claimed without the correction
    assert family < 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(runs))


def test_holms_p_by_hand():
    assert holm(np.array([0.04, 0.01, 0.03, 0.9])).tolist() == pytest.approx([0.09, 0.04, 0.09, 0.9])
    assert holm(np.empty(0)).tolist() == [] and holm(np.array([0.04])).tolist() == [0.04]


def test_verdicts_and_intervals_are_corrected_for_the_groups_that_are_tested():
    base = pool("base", [0.70, 0.71, 0.72, 0.73])
    group = [0.718, 0.728, 0.738, 0.748]
    alone = compare(pool("new", group), base, lower_is_better=False)
    assert alone.corrected == alone.p and alone.comparisons == 1
    groups = [pool("new", group), pool("near", [0.70, 0.71, 0.72, 0.74]), pool("single", [0.9])]
    first, _, single = statistics.compare(groups, base, lower_is_better=False)
    assert first.comparisons == 2 and first.p == alone.p and first.corrected == pytest.approx(2 * first.p)
    assert first.low < alone.low and single.corrected is None and single.verdict.startswith("no claim: single has n = 1")
