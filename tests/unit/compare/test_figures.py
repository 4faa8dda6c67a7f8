import math

import pytest

from pipeline.compare.figures import _short, differences, group_names, lower_is_better, measure
from pipeline.compare.read import read_journal
from pipeline.errors import UsageError
from pipeline.track.journal import Journal


def test_figures_of_a_run(write):
    found = measure(read_journal(write("one", [0.5, 0.8, 0.7])), "val/top1", target=0.75)
    assert (found.steps, found.total_steps, found.epochs) == (30, 40, 3.0)
    assert (found.last["val/top1"], found.best["val/top1"], found.best_step) == (0.7, 0.8, 20)
    assert found.best["val/loss"] == pytest.approx(0.2)
    assert (found.target.steps, found.target.seconds) == (20, 20.0)
    assert found.target.device_hours == pytest.approx(40 / 3600)
    assert (found.images_per_s, found.data_wait, found.seconds) == (101.0, 0.1, 30.0)


def test_a_target_that_is_a_loss_is_reached_from_above(write):
    run = read_journal(write("one", [0.5, 0.8, 0.9]))
    assert measure(run, "val/loss", target=0.25).target.steps == 20
    assert measure(run, "val/loss", target=0.01).target is None
    assert lower_is_better("val/loss") and not lower_is_better("val/top1") and lower_is_better("summary/train_seconds")


def test_figures_have_names(write):
    found = measure(read_journal(write("one", [0.5, 0.8, 0.7])), "val/top1", target=0.75)
    assert found.value("val/top1") == 0.7
    assert found.value("best:val/top1") == 0.8
    assert found.value("target:seconds") == 20
    assert found.value("images_per_s") == 101
    assert found.value("val/nothing") is None
    never = measure(read_journal(write("two", [0.5])), "val/top1", target=0.75)
    assert never.value("target:steps") == math.inf


def test_differences_name_what_is_not_the_same(write):
    one = read_journal(write("one", [0.5], tags={"git.commit": "a", "torch": "2.13", "command": "x"}))
    two = read_journal(write("two", [0.5], config={"optim.lr": 0.2, "new": True}, tags={"git.commit": "b", "torch": "2.14"}))
    assert differences([one, two]) == {
        "config": {"optim.lr": ["0.1", "0.2"], "new": ["-", "true"]},
        "code": {"git.commit": ["a", "b"]},
        "environment": {"torch": ["2.13", "2.14"]},
    }
    tagged = [read_journal(write(name, [0.5], config={"track.tags.group": name}, tags={"group": name})) for name in ("x", "y")]
    assert differences(tagged) == {"config": {"track.tags.group": ["x", "y"]}, "code": {}, "environment": {}}
    assert differences([one, one]) == {"config": {}, "code": {}, "environment": {}}


def test_runs_that_differ_in_seed_and_harmless_keys_are_one_group(write):
    configs = {"a": {}, "b": {"seed": 1, "data.threads": 9}, "c": {"optim.lr": 0.2}}
    runs = [read_journal(write(name, [0.5], config=config, tags={"group": name[:1]})) for name, config in configs.items()]
    assert group_names(runs, None) == ["optim.lr=0.1", "optim.lr=0.1", "optim.lr=0.2"]
    assert group_names(runs[:2], None) == ["demo", "demo"]
    assert group_names(runs, "seed") == ["0", "1", "0"]
    assert group_names(runs, "group") == ["a", "b", "c"]
    with pytest.raises(UsageError, match="--group-by nothing: no run has it"):
        group_names(runs, "nothing")


def validated(digest):
    """Return what a journal says of a validation split."""
    counts = {"images": 10, "classes": 2}
    return [{"name": "x/val", "digest": digest, "context": "validation", "source": "/x/val"} | counts]


@pytest.mark.parametrize(
    "other",
    [
        {"config": {"eval.flip": True}},
        {"config": {"eval.crop": 160}},
        {"config": {"data.root": "/b"}},
        {"config": {"data.quarantine": "/bad.txt"}},
        {"config": {"data.interpolation": "bicubic"}},
        {"tags": {"precision": "bf16"}},
        {"datasets": validated("b")},
    ],
)
def test_runs_that_are_measured_in_another_way_are_not_pooled(write, other):
    usual = {
        "config": {"eval.flip": False, "eval.crop": 224, "data.root": "/a", "data.quarantine": None, "data.interpolation": "x"},
        "tags": {"precision": "fp32"},
        "datasets": validated("a") if "datasets" in other else [],
    }
    runs = [read_journal(write("a", [0.5], **usual))]
    changed = {k: v | other.get(k, {}) if isinstance(v, dict) else other.get(k, v) for k, v in usual.items()}
    runs.append(read_journal(write("b", [0.5], **changed)))
    first, second = group_names(runs, None)
    assert first != second


def test_the_same_data_elsewhere_and_runs_of_other_names_are_pooled(write):
    same = validated("a")
    runs = [
        read_journal(
            write(name, [0.5], config={"data.root": f"/{name}", "run.name": f"wide-{seed}", "seed": seed}, datasets=same)
        )
        for seed, name in enumerate("ab")
    ]
    assert group_names(runs, None) == ["wide", "wide"]


def test_a_run_that_recorded_no_packages_differs_in_none(write):
    one = read_journal(write("a", [0.5], tags={"package.torch": "2.14"}))
    assert differences([one, read_journal(write("b", [0.5]))])["environment"] == {}


def test_the_better_way_is_told_from_the_name():
    lower = (
        "val/loss",
        "summary/seconds",
        "time/active_s",
        "perf/data_wait",
        "summary/energy_wh",
        "system/node0/gpu0_memory_gb",
    )
    assert all(map(lower_is_better, lower))
    higher = ("val/top1", "perf/images_per_s", "system/node0/disk_read_mb_s")
    assert not any(map(lower_is_better, higher))


def test_the_best_of_any_metric_that_is_compared(write):
    found = measure(read_journal(write("a", [0.5, 0.7])), "perf/images_per_s", target=101.0)
    assert found.best["perf/images_per_s"] == 101.0 and found.best_step == 20 and found.target.steps == 20
    assert found.value("target:nonsense") is None and found.value("target:steps") == 20


def test_the_end_of_a_run_is_no_part_of_the_time_to_its_last_evaluation(write):
    directory = write("one", [0.5, 0.8])
    with Journal(directory) as journal:
        journal.metrics(20, {"time/val_s": 21.0, "summary/seconds": 50.0})
    found = measure(read_journal(directory), "val/top1", target=0.75)
    assert (found.target.steps, found.target.seconds, found.seconds) == (20, 21.0, 50.0)
    assert found.target.device_hours == pytest.approx(42 / 3600) and found.device_hours == pytest.approx(100 / 3600)


def test_names_of_groups_stay_short_and_apart():
    long = [f"{'data.crop_scale=0.35, ' * 5}optim.lr={lr}" for lr in (0.1, 0.1, 0.2)]
    assert _short(long, ["a", "a", "b"]) == ["a", "a", "b"]
    for named in (["a", "a", "a"], ["a", "b", "c"]):  # of one name, or of two in a group
        first, again, other = _short(long, named)
        assert (first, first[:20], other[:20]) == (again, "1: data.crop_scale=0", "2: data.crop_scale=0")
        assert max(map(len, (first, other))) <= 60
    ends = [f"optim.lr={lr}, {'data.crop_scale=0.35, ' * 5}" for lr in (0.1, 0.1, 0.2)]
    assert _short(ends, ["a", "a", "b"])[2] == ends[2][:57] + "..."
