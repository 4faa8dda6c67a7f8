"""Trouble that passes, failures that don't, and jobs that come back in vain, on a real SLURM."""

import fcntl
import json
import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

Submit = Callable[..., Any]
pytestmark = pytest.mark.timeout(900)


def test_a_loss_that_is_not_finite_fails_the_job_once(submit: Submit, shared: Path) -> None:
    training = submit("explodes", "optim.lr=1e30", "optim.lr_per=null")
    training.cluster.wait(training.job_id, "FAILED")
    assert training.requeues() == []
    assert [status for status, _ in training.statuses()] == ["RUNNING", "FAILED"]
    said = training.cluster.launch("status", "--root", shared / "runs", training.name)
    assert "the loss is not finite at step" in said.splitlines()[-1]


def test_a_job_that_makes_no_progress_is_given_up(submit: Submit) -> None:
    training = submit("locked", "--set", "hold", "train.retry_s=1", "launch.max_restarts=0", "launch.max_idle_requeues=1")
    with closing(os.fdopen(os.open(training.run_dir / "run.lock", os.O_RDWR | os.O_CREAT), "w")) as lease:
        fcntl.flock(lease, fcntl.LOCK_EX)
        json.dump({"pid": 1, "host": "a-host-that-died"}, lease)
        lease.flush()
        training.cluster.ask("scontrol", "release", training.job_id)
        training.cluster.wait(training.job_id, "FAILED")
    assert "is locked by pid 1 on a-host-that-died" in training.log()
    assert "no step beyond 0 was saved in 1 requeues (launch.max_idle_requeues=1)" in training.log()
    assert len(training.requeues()) == 1


def test_a_controller_that_is_away_loses_no_requeue(submit: Submit) -> None:
    training = submit("unanswered")
    training.reaches(60)
    cluster = training.cluster
    controller = int((cluster.folder / "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGSTOP)
    try:
        for pid in training.pids("submitit.core._submit"):
            os.kill(pid, signal.SIGUSR2)
        training.until(lambda: "; trying for 600 s" in training.log(), "the job to ask in vain")
    finally:
        os.kill(controller, signal.SIGCONT)
    training.finished()
    (requeue,) = training.requeues()
    assert "SIGUSR2" in requeue["reason"] and training.resumed()[0] % 50
