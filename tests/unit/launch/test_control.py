"""What people see of submitted runs; `scontrol` is a script that counts how often it is asked."""

import time
from pathlib import Path

import pytest

from launch import control
from launch.options import Options
from launch.snapshot import Folder
from pipeline.track.journal import Journal


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that has a line for each question to the controller."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    script = f"#!/bin/sh\necho $* >> {tmp_path}/asked\ncat {tmp_path}/jobs\n"
    (tmp_path / "scontrol").write_text(script)
    (tmp_path / "scontrol").chmod(0o755)
    (tmp_path / "jobs").write_text("")
    return tmp_path / "asked"


def submitted(place: Path, job: str) -> Folder:
    folder = Folder(place)
    folder.jobs.mkdir(parents=True)
    log = folder.jobs / f"{job}_0_log.out"
    log.write_text("hello\n")
    folder.write({"job": job, "options": Options().model_dump(mode="json"), "log": str(log)})
    return folder


def test_many_runs_are_one_question_and_a_failure_says_why(asked: Path, tmp_path: Path) -> None:
    found = [submitted(tmp_path / "runs" / str(n), str(n)) for n in range(1, 6)]
    (tmp_path / "jobs").write_text("JobId=1 JobState=RUNNING Reason=None\nJobId=2 JobState=FAILED Reason=None\n")
    with Journal(found[1].run_dir) as journal:
        journal.event("run", uid="a", name="a", config={}, plan={}, tags={}, resumed_from_step=None)
        journal.event("status", status="FAILED", reason="the loss is not finite at step 3")
    rows = control.states(found)
    assert [row["state"] for row in rows] == ["RUNNING", "FAILED", "GONE", "GONE", "GONE"]
    assert control.render(rows).endswith("\n2: the loss is not finite at step 3")
    assert len(asked.read_text().splitlines()) == 1


def test_following_a_log_asks_rarely(asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, said, naps = submitted(tmp_path / "run", "1"), [], []
    (tmp_path / "jobs").write_text("JobId=1 JobState=RUNNING Reason=None\n")
    now, sleep = time.monotonic(), time.sleep

    def nap(seconds: float) -> None:
        if seconds < 0.5:  # subprocess's own, while it waits for scontrol
            return sleep(seconds)
        naps.append(seconds)
        if len(naps) == 25:
            (tmp_path / "jobs").write_text("JobId=1 JobState=COMPLETED Reason=None\n")

    monkeypatch.setattr(control.time, "sleep", nap)
    monkeypatch.setattr(control.time, "monotonic", lambda: now + sum(naps))
    control.logs(folder, True, None, said.append)
    assert said == ["hello\n"] and sum(naps) == 30
    assert len(asked.read_text().splitlines()) == 4  # at 0, 10, 20 and 30 s
