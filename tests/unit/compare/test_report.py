import csv
import io
import json
from dataclasses import replace

import pytest

from pipeline.compare import condition, report, text
from pipeline.compare.read import read_journal
from pipeline.compare.report import Wanted, make
from pipeline.errors import Regression, UsageError
from pipeline.track.journal import Journal


@pytest.fixture
def six(write):
    """Three seeds of a baseline, and three of something three points better that costs the same."""
    runs = []
    for seed in range(3):
        runs.append(write(f"base{seed}", [0.5, 0.70 + seed / 100], config={"seed": seed}))
        runs.append(write(f"new{seed}", [0.5, 0.80 + seed / 100], config={"seed": seed, "optim.lr": 0.2}))
    return [read_journal(run) for run in runs]


def test_seeds_are_pooled_and_tested(six):
    found = make(six, Wanted(target=0.75))
    assert [group.n for group in found.pooled] == [3, 3]
    (claim,) = found.claims
    assert (claim.group, claim.baseline, claim.verdict) == ("optim.lr=0.2", "optim.lr=0.1", "better")
    assert found.front == [False, False, False, False, False, True]
    assert [f.target is None for f in found.figures] == [True, False] * 3


def test_the_baseline_is_a_group_or_a_run(six):
    assert make(six, Wanted(baseline="new1")).baseline == "optim.lr=0.2"
    assert make(six, Wanted(baseline="optim.lr=0.2")).claims[0].verdict == "worse"
    with pytest.raises(UsageError, match="--baseline nobody: none of these"):
        make(six, Wanted(baseline="nobody"))


def test_conditions_are_about_group_means(six):
    found = make(six, Wanted(baseline="new0"))
    with pytest.raises(Regression, match=r"holds for optim.lr=0.1: val/top1 = 0.71 \(baseline optim.lr=0.2: val/top1 = 0.81\)"):
        report.check(found, condition.parse("val/top1 < baseline - 0.3%"))
    report.check(found, condition.parse("val/top1 < baseline - 11%"))
    with pytest.raises(UsageError, match="has no val/top9; there are data_wait"):
        report.check(found, condition.parse("val/top9 < baseline"))
    with pytest.raises(UsageError, match="divides by zero"):
        report.check(found, condition.parse("val/top1 / 0 < baseline"))


def test_runs_of_one_group_are_checked_one_by_one(six):
    with pytest.raises(Regression, match=r"holds for b \(base1\): val/top1 = 0.71; c \(base2\)"):
        report.check(make(six[::2], Wanted()), condition.parse("val/top1 > baseline"))
    with pytest.raises(Regression, match=r"holds for a \(base0\): val/top1 = 0.7; b \(base1\): .* \(baseline c \(base2\)"):
        report.check(make(six[::2], Wanted(baseline="base2")), condition.parse("val/top1 < baseline"))
    with pytest.raises(UsageError, match="only the baseline is here"):
        report.check(make(six[:1], Wanted()), condition.parse("val/top1 > baseline"))


def test_a_metric_that_nobody_recorded(six):
    with pytest.raises(UsageError, match="--metric val/top2: no run has recorded it; there are perf/data_wait"):
        make(six, Wanted(metric="val/top2"))


def test_text_says_what_there_is(six):
    said = text.render(make(six, Wanted(target=0.75)))
    lines = said.splitlines()
    heading = (
        "run state steps last val/top1 best at step steps to 75.00 % time to it device-h to it time device-h "
        "median img/s median data wait"
    )
    assert " ".join(lines[0].split()) == heading
    assert lines[1].split()[:5] == ["a", "base0", "FINISHED", "20/40", "70.00"]
    assert "never" in lines[1] and "never" not in lines[2]
    assert "On the Pareto front of best val/top1 against seconds: f (new2)" in said
    (claim,) = (line for line in lines if line.endswith("better"))
    assert claim.split()[:4] == ["optim.lr=0.2", "3", "81.00", "%"]
    assert "optim.lr             0.1  0.2" in said
    assert "val/top1 against steps" in said


def test_one_run_alone_and_runs_that_are_the_same(six):
    said = text.render(make(six[:1], Wanted()))
    assert "Pareto" not in said and "differs" not in said and "group" not in said
    assert "are the same." in text.render(make([six[0], six[0]], Wanted()))


def test_json_is_strict_and_csv_has_a_line_a_run(six, write):
    odd = read_journal(write("odd", [float("nan"), float("inf")]))
    found = make([*six, odd], Wanted(target=0.75))
    told = json.loads(json.dumps(report.as_json(found), allow_nan=False))
    assert told["runs"][1]["target"] == {"steps": 20, "seconds": 20.0, "device_hours": pytest.approx(40 / 3600)}
    assert told["runs"][6]["last"]["val/top1"] is None
    rows = list(csv.DictReader(io.StringIO(report.as_csv(found))))
    assert [row["name"] for row in rows[:2]] == ["base0", "new0"]
    assert (rows[1]["last:val/top1"], rows[1]["config:optim.lr"], rows[0]["target_steps"]) == ("0.8", "0.2", "")
    text.render(found)


def test_a_figure_that_is_no_number_never_passes(six, write):
    found = make([six[0], read_journal(write("odd", [float("nan")], config={"optim.lr": 9}))], Wanted())
    with pytest.raises(UsageError, match="optim.lr=9: val/loss is not a number"):
        report.check(found, condition.parse("val/loss > baseline"))


def test_runs_that_did_not_finish_are_left_out_of_groups_and_never_pass(six, write):
    died = read_journal(write("died", [0.35], config={"seed": 9, "optim.lr": 0.2}, end=None))
    found = make([*six, died], Wanted())
    group = next(g for g in found.pooled if g.name == "optim.lr=0.2")
    assert group.n == 3 and group.left_out == ("died (DIED at 10/40)",) and found.claims[0].verdict == "better"
    assert "Not finished, left out of the groups: died (DIED at 10/40)" in text.render(found)
    with pytest.raises(UsageError, match=r"not finished, which is no pass: died \(DIED at 10/40\)"):
        report.check(found, condition.parse("val/top1 < baseline - 1%"))


def test_a_seed_that_is_there_twice_is_no_second_run(six, write):
    again = read_journal(write("again", [0.5, 0.81], config={"seed": 0, "optim.lr": 0.2}))
    found = make([*six, again], Wanted())
    (claim,) = found.claims
    assert claim.verdict == "no claim: optim.lr=0.2 has seed 0 more than once; run it with other seeds"
    assert [group.low for group in found.pooled if group.again] == [None]


def test_nothing_is_worse_than_a_baseline_that_never_arrived(six):
    found = make(six, Wanted(target=0.75))
    with pytest.raises(UsageError, match=r"the baseline optim.lr=0.1 never reached the target"):
        report.check(found, condition.parse("target:seconds > 1.2 * baseline"))


def test_a_condition_about_a_target_needs_one_and_every_figure_is_looked_up(six):
    with pytest.raises(UsageError, match="needs --target"):
        report.check(make(six, Wanted()), condition.parse("target:seconds > baseline"))
    with pytest.raises(UsageError, match="has no val/top9"):
        report.check(make(six, Wanted()), condition.parse("val/top1 < 0 and val/top9 > 1"))


def test_a_baseline_whose_name_several_groups_have_is_refused(write):
    runs = [read_journal(write(name, [0.5], config={"optim.lr": lr})) for name, lr in (("a", 0.1), ("b", 0.2))]
    runs = [replace(run, name="same") for run in runs]
    with pytest.raises(UsageError, match="--baseline same: runs of several groups have this name"):
        make(runs, Wanted(baseline="same"))


def test_no_accuracy_is_above_a_hundred_per_cent(write):
    runs = [read_journal(write(f"r{seed}", [0.97 + seed / 100], config={"seed": seed})) for seed in range(3)]
    found = make(runs, Wanted())
    assert found.pooled[0].high > 1
    (line,) = (line for line in text.render(found).splitlines() if line.startswith("demo"))
    assert "to 100.00 %" in line


def test_a_learning_rate_has_no_best(write):
    directory = write("one", [0.5])
    with Journal(directory) as journal:
        journal.metrics(20, {"train/lr": 0.1, "train/epoch": 1.0, "train/top1": 0.4})
    (heading, _) = report.as_csv(make([read_journal(directory)], Wanted())).splitlines()
    assert "best:train/top1" in heading and "last:train/lr" in heading
    assert "best:train/lr" not in heading and "best:train/epoch" not in heading


def test_several_groups_say_that_they_are_corrected(six, write):
    third = [write(f"more{seed}", [0.5, 0.75 + seed / 100], config={"seed": seed, "optim.lr": 0.3}) for seed in range(3)]
    found = make([*six, *map(read_journal, third)], Wanted())
    said = text.render(found)
    assert "corrected for 2 comparisons (Holm)" in said and "p (Holm)" in said
    assert report.as_json(found)["correction"] == "corrected for 2 comparisons (Holm)"
    assert "Holm" not in text.render(make(six, Wanted()))
