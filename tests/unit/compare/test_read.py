import json

import numpy as np
import pytest

from pipeline.compare.figures import differences
from pipeline.compare.read import read_journal
from pipeline.errors import UsageError
from pipeline.track.journal import Journal
from pipeline.track.runs import read_run


def test_a_run_is_read_with_its_curves(write):
    run = read_journal(write("one", [0.5, 0.7]))
    assert (run.name, run.uid, run.status, run.step) == ("one", "one-uid", "FINISHED", 20)
    assert run.config["optim.lr"] == 0.1
    assert run.curves["val/top1"].steps.tolist() == [10, 20]
    assert run.curves["val/top1"].values.tolist() == [0.5, 0.7]
    assert run.seconds(np.array([5.0, 20.0])).tolist() == [5.0, 20.0]
    assert run.device_hours(18) == pytest.approx(2 * 18 / 3600)


def test_of_steps_done_over_the_last_counts_and_a_change_of_world_counts_from_its_step(write):
    directory = write("one", [0.5, 0.7], end=None)
    again = {"config": {}, "plan": {"world_size": 8}, "tags": {}, "resumed_from_step": 10}
    with Journal(directory) as journal:
        journal.event("run", uid="one-uid", name="one", **again)
        journal.metrics(20, {"val/top1": 0.1, "time/active_s": 20.0})
        journal.metrics(30, {"val/top1": float("nan"), "time/active_s": 30.0})
    run = read_journal(directory)
    assert run.status == "DIED"
    assert run.curves["val/top1"].steps.tolist() == [10, 20, 30]
    assert run.curves["val/top1"].values[1] == 0.1
    assert np.isnan(run.curves["val/top1"].values[2])
    assert run.device_hours(30) == pytest.approx((2 * 10 + 8 * 20) / 3600)
    assert run.device_hours(5) == pytest.approx(2 * 5 / 3600)


def test_what_is_no_run_is_told_in_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"can't read journal.jsonl: No such file"):
        read_journal(tmp_path)
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(UsageError, match="died before it began"):
        read_journal(tmp_path)


def test_a_run_that_never_timed_itself_has_no_seconds(tmp_path):
    with Journal(tmp_path) as journal:
        journal.event("run", uid="u", name="n", config={}, plan={}, tags={}, resumed_from_step=None)
    assert np.isnan(read_journal(tmp_path).seconds(np.array([1.0]))).all()


def test_other_code_and_packages_are_told_from_the_run_directory(write):
    found = [write(name, [0.5]) for name in "ab"]
    for run, version in zip(found, ("1", "2"), strict=True):
        (run / "code.diff").write_text(version)
        (run / "environment.json").write_text(json.dumps({"packages": {"numpy": version}, "driver": version}))
    told = differences([read_journal(run) for run in found])
    assert list(told["code"]) == ["git.diff"] and told["environment"] == {"package.numpy": ["1", "2"], "driver": ["1", "2"]}


def test_comparing_and_listing_agree_on_a_run_that_has_not_caught_up_yet(write):
    directory = write("one", [0.5, 0.7, 0.8], end=None)
    again = {"config": {}, "plan": {"world_size": 1}, "tags": {}, "resumed_from_step": 15}
    with Journal(directory) as journal:
        journal.event("run", uid="one-uid", name="one", **again)
        journal.metrics(20, {"train/loss": 0.01, "time/active_s": 21.0})
    compared, listed = read_journal(directory), read_run(directory)
    assert compared.step == listed.step == 20
    assert {key: curve.values[-1] for key, curve in compared.curves.items()} == listed.last
    assert (listed.last["val/top1"], listed.last["train/loss"]) == (0.5, 0.01)
    assert compared.seconds(np.array([20.0])).tolist() == [21.0]
