"""Trainings on a real SLURM, and all that happens to them: each ends with the calm one's weights, in one MLflow run."""

import json
import os
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

Submit = Callable[..., Any]
pytestmark = pytest.mark.timeout(900)


def assert_as_if_nothing_had_happened(training: Any, calm: Any, shared: Path) -> None:
    """The same weights, and one MLflow run with every step once.

    Not bit by bit: DistributedDataParallel groups gradients anew after its first step, and four summands have an order.
    """
    a, b = (load_file(one.run_dir / "model.safetensors") for one in (training, calm))
    assert a.keys() == b.keys()
    for name, one in a.items():
        assert (one - b[name]).abs().max() <= 1e-9 * b[name].abs().max(), name
    with closing(sqlite3.connect(shared / "mlflow.db")) as database:
        query = "SELECT run_uuid, status FROM runs WHERE name = ?"
        ((run_id, status),) = database.execute(query, (training.name,)).fetchall()
        steps = database.execute("SELECT step FROM metrics WHERE run_uuid = ? AND key = 'train/loss'", (run_id,)).fetchall()
    assert status == "FINISHED"
    assert sorted(step for (step,) in steps) == list(range(1, 161))


def test_two_nodes_of_two_processes(calm: Any, shared: Path) -> None:
    assert_as_if_nothing_had_happened(calm, calm, shared)
    assert "on 4 x cpu" in calm.log() and calm.requeues() == []
    assert [status for status, _ in calm.statuses()] == ["RUNNING", "FINISHED"]


def test_a_signal_requeues_the_job_at_the_step(submit: Submit, calm: Any, shared: Path) -> None:
    training = submit("signal")
    training.reaches(60)
    training.cluster.ask("scancel", "--signal=USR2", training.job_id)
    training.finished()
    assert_as_if_nothing_had_happened(training, calm, shared)
    ((resumed,), (requeue,)) = training.resumed(), training.requeues()
    assert resumed % 50, "it went on from the periodic checkpoint, not from the signal"
    assert "SIGUSR2" in requeue["reason"] and requeue["job"] == training.job_id
    assert training.cluster.job(training.job_id)["Restarts"] == "1"
    assert [status for status, _ in training.statuses()] == ["RUNNING", "SCHEDULED", "RUNNING", "FINISHED"]


@pytest.mark.parametrize("partition", ["low", "abrupt"])
def test_preempted_by_a_job_of_higher_priority(submit: Submit, calm: Any, shared: Path, partition: str) -> None:
    training = submit(f"preempted-{partition}", "--partition", partition)
    training.reaches(60)
    urgent = training.cluster.ask("sbatch", "--parsable", "-p", "high", "-N2", "--exclusive", "-o/dev/null", "--wrap=sleep 1")
    training.cluster.wait(urgent.strip(), "COMPLETED")
    training.finished()
    assert_as_if_nothing_had_happened(training, calm, shared)
    assert len(training.requeues()) == 1 and training.resumed()[0] >= 50
    if partition == "low":
        assert training.resumed()[0] % 50


def test_the_time_limit(submit: Submit, calm: Any, shared: Path) -> None:
    size = ("--nodes", "2", "--gpus-per-node", "2")
    training = submit("timed-out", *size, "--time", "1", "--signal-delay-s", "10", "dist.timeout_s=600")
    training.until(lambda: training.step() >= 60 or training.requeues(), "step 60, or the time limit")
    if not training.requeues():
        for pid in training.pids("launch.worker"):
            os.kill(pid, signal.SIGSTOP)  # it would be done before SLURM's clock, which ticks in tens of seconds
    training.finished(300)
    assert_as_if_nothing_had_happened(training, calm, shared)
    assert "SIGUSR2" in training.requeues()[0]["reason"]


def test_a_killed_worker_comes_back_without_a_requeue(submit: Submit, calm: Any, shared: Path) -> None:
    training = submit("killed-worker")
    training.reaches(60)
    os.kill(training.pids("launch.worker")[-1], signal.SIGKILL)
    training.finished()
    assert_as_if_nothing_had_happened(training, calm, shared)
    assert training.requeues() == [] and training.cluster.job(training.job_id)["Restarts"] == "0"
    assert training.resumed() == [50]


def test_a_killed_task_is_requeued(submit: Submit, calm: Any, shared: Path) -> None:
    training = submit("killed-task")
    training.reaches(60)
    os.kill(training.pids("submitit.core._submit")[-1], signal.SIGKILL)
    training.finished()
    assert_as_if_nothing_had_happened(training, calm, shared)
    (requeue,) = training.requeues()
    assert "a task was killed" in requeue["reason"]


def test_a_killed_node_is_requeued(submit: Submit, calm: Any, shared: Path) -> None:
    training = submit("killed-node")
    training.reaches(60)
    training.cluster.kill_node("node2")
    training.cluster.wait(training.job_id, "PENDING")
    training.cluster.start_node("node2")
    training.finished()
    assert_as_if_nothing_had_happened(training, calm, shared)
    assert len(training.requeues()) == 1


def test_scontrol_requeue(submit: Submit, calm: Any, shared: Path) -> None:
    training = submit("requeued")
    training.reaches(60)
    training.cluster.ask("scontrol", "requeue", training.job_id)
    training.finished()
    assert_as_if_nothing_had_happened(training, calm, shared)
    (requeue,) = training.requeues()
    assert "by SLURM" in requeue["reason"]


def test_scancel_ends_it_for_good_and_resubmit_goes_on(submit: Submit, calm: Any, shared: Path) -> None:
    training = submit("cancelled")
    training.reaches(60)
    training.cluster.ask("scancel", training.job_id)
    training.until(lambda: training.statuses()[-1][0] == "KILLED", "the run to be KILLED")
    training.until(lambda: mlflow_status(shared, "cancelled") == "KILLED", "MLflow to know")
    training.cluster.wait(training.job_id, "CANCELLED")
    assert training.requeues() == []
    training.job_id = json.loads(training.cluster.launch("resubmit", training.run_dir, "--json"))["job"]
    training.finished()
    assert_as_if_nothing_had_happened(training, calm, shared)
    assert training.resumed()[0] % 50


def mlflow_status(shared: Path, name: str) -> str:
    with closing(sqlite3.connect(shared / "mlflow.db")) as database:
        rows = database.execute("SELECT status FROM runs WHERE name = ?", (name,)).fetchall()
    return str(rows[0][0]) if rows else ""
