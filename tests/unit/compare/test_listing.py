import io
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from pipeline.compare import listing
from pipeline.compare.listing import Query, choose, progress, render, time_left, value
from pipeline.errors import UsageError
from pipeline.track.journal import Journal
from pipeline.track.lock import RunLock
from pipeline.track.runs import list_runs


@pytest.fixture
def three(write, tmp_path):
    write("one", [0.7], config={"optim.lr": 0.1, "model.zero": True}, tags={"group": "wide"})
    write("two", [0.9], config={"optim.lr": 0.2, "model.zero": False}, end="FAILED")
    write("three", [0.8], config={"optim.lr": 0.2, "model.zero": None})
    return list_runs(tmp_path / "runs")


def names(runs):
    return [run.name for run in runs]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["val/top1>0.75"], ["two", "three"]),
        (["val/top1 <= 0.8"], ["one", "three"]),
        (["optim.lr=0.2", "state=FINISHED"], ["three"]),
        (["optim.lr==0.20"], ["two", "three"]),
        (["state!=FINISHED"], ["two"]),
        (["model.zero=true"], ["one"]),
        (["group=wide"], ["one"]),
        (["tag:group=wide"], ["one"]),
        (["tag:group!=wide"], []),
        (["val/top1>79%"], ["two", "three"]),
        (["name=1e1"], []),
    ],
)
def test_conditions_choose_runs(three, where, expected):
    assert sorted(names(choose(three, Query(tuple(where))))) == sorted(expected)


def test_what_is_not_a_number_comes_last(write, tmp_path):
    for name, accuracy in zip("abcde", (0.5, math.nan, 0.3, math.nan, 0.9), strict=True):
        write(name, [accuracy])
    found = list_runs(tmp_path / "runs")
    assert names(choose(found, Query(sort="val/top1")))[:3] == ["c", "a", "e"]
    assert names(choose(found, Query(sort="val/top1", reverse=True)))[:3] == ["e", "a", "c"]
    with pytest.raises(UsageError, match="--where 'val/top1>abc': 'abc' is no number"):
        choose(found, Query(where=("val/top1>abc",)))


def test_sorting_and_grouping(three):
    assert names(choose(three, Query(sort="val/top1"))) == ["one", "three", "two"]
    assert names(choose(three, Query(sort="val/top1", reverse=True))) == ["two", "three", "one"]
    assert names(choose(three, Query(sort="group")))[0] == "one"
    shown = render(choose(three, Query(sort="val/top1")), Query(sort="val/top1", group_by="optim.lr", columns=("model.zero",)))
    parts = shown.split("\n\n")
    assert [part.splitlines()[0] for part in parts] == ["optim.lr=0.1 (1 run)", "optim.lr=0.2 (2 runs)"]
    heading, row = (line.split() for line in parts[0].splitlines()[1:])
    assert heading[-5:-2] == ["model.zero", "val/top1", "mlflow"]
    assert row[-5:-2] == ["true", "70.00", "%"]


def test_what_no_run_has_and_what_is_no_condition(three):
    for query in (Query(sort="val/top9"), Query(group_by="nothing"), Query(("nothing=1",))):
        with pytest.raises(UsageError, match="no run has it"):
            choose(three, query)
    with pytest.raises(UsageError, match="--where 'top1': write KEY=VALUE"):
        choose(three, Query(("top1",)))
    assert choose([], Query(sort="val/top1")) == []


def test_progress_of_a_living_run(write, tmp_path):
    directory = write("one", [0.5, 0.6], end=None)
    with RunLock(directory):
        (run,) = list_runs(tmp_path / "runs")
        assert (run.status, time_left(run)) == ("RUNNING", 20.0)
        line = progress([run]).splitlines()[1]
    assert line.split()[:7] == ["one", "RUNNING", "[##########..........]", "50%", "20/40", "101", "20.0s"]
    (dead,) = list_runs(tmp_path / "runs")
    assert dead.status == "DIED" and time_left(dead) is None
    assert value(dead, "state") == "DIED"
    assert progress([]) == "no run is training here"


WATCH = """
import sys
from pathlib import Path
from pipeline.compare.listing import watch
watch(Path(sys.argv[1]), 0.1, clear=False)
"""


def test_watching_follows_the_journal_to_the_end(write, tmp_path):
    directory = write("one", [0.5], end=None)
    write("old", [0.5])
    with RunLock(directory), Journal(directory) as journal:
        command = [sys.executable, "-c", WATCH, str(tmp_path / "runs")]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
        ) as watcher:
            assert watcher.stdout.readline().startswith("run")
            assert "10/40" in watcher.stdout.readline()
            journal.metrics(40, {"val/top1": 0.9, "time/active_s": 40.0})
            assert watcher.stdout.readline().startswith("run")
            assert "40/40" in watcher.stdout.readline()
            journal.event("status", status="FINISHED", reason="")
            rest = watcher.stdout.read()
    assert watcher.returncode == 0
    assert "FINISHED" in rest and "old" not in rest


def test_a_terminal_is_drawn_anew(write, tmp_path, monkeypatch):
    write("one", [0.5])
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    listing.watch(tmp_path / "runs", 0.1, clear=True)
    assert out.getvalue() == "\033[H\033[Jno run is training here\n"


def test_shares_of_time_are_per_cent(three):
    found = [replace(run, summary={"tracking_wait": 0.0123}) for run in three]
    assert "1.23 %" in render(found, Query(columns=("tracking_wait",))).splitlines()[1]
