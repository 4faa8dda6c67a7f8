"""What the commands say and do besides submitting: the table, logs, bad input, srun, arrays."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

Submit = Callable[..., Any]
pytestmark = pytest.mark.timeout(900)


def test_status_and_logs_of_a_finished_run(calm: Any, shared: Path) -> None:
    rows = json.loads(calm.cluster.launch("status", "--root", shared / "runs", calm.name, "--json"))
    assert [(row["job"], row["status"], row["step"], row["total_steps"]) for row in rows] == [
        (calm.job_id, "FINISHED", 160, 160)
    ]
    assert "160/160" in calm.cluster.launch("status", "--root", shared / "runs")
    assert "top-1" in calm.cluster.launch("logs", calm.run_dir, "-f")
    assert "on 4 x cpu" in calm.cluster.launch("logs", calm.run_dir, "--rank", "0")
    assert calm.cluster.launch("logs", calm.run_dir, "--rank", "3") == ""
    assert "no log of rank 9" in calm.cluster.launch("logs", calm.run_dir, "--rank", "9", expect=2)
    assert "has ended already" in calm.cluster.launch("cancel", calm.run_dir, expect=2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--partition", "nowhere"], "'nowhere' does not exist; there are main, low, abrupt, high"),
        (["--gpus-per-node", "5", "batch.micro=1", "batch.global=5"], "--gpus-per-node: 5, but a node of partition main has 4"),
        (["--nodes", "3", "batch.micro=4", "batch.global=12"], "--nodes: 3, but partition main has 2 nodes"),
        (["--nodes", "3"], "can't be shared by 3 processes"),
        (["--time", "soon"], "--time: 'soon' is not a time limit"),
        (["--account", "x", "--dependency", "nonsense"], "nothing was submitted"),
        (["--set", "nosuch=1"], "sbatch: unrecognized option '--nosuch=1'; nothing was submitted"),
        (["--time", "2"], "--time: 2 min is no longer than --signal-delay-s, 120 s"),
        (["optim.lrr=1"], "did you mean optim.lr?"),
    ],
)
def test_bad_input(cluster: Any, digits: Path, tmp_path: Path, options: list[str], said: str) -> None:
    shape = [] if "--nodes" in options or "--gpus-per-node" in options else ["--nodes", "2"]
    overrides = [f"data.root={digits}", f"run.root={tmp_path}", "batch.micro=16"]
    error = cluster.launch("slurm", "configs/demo.yaml", *overrides, *shape, *options, expect=2)
    assert said in error and len(error.splitlines()) == 1
    assert cluster.ask("squeue", "-h") == ""


def test_two_jobs_do_not_share_a_directory(submit: Submit, digits: Path) -> None:
    training = submit("twice", "--partition", "low", "--set", "begin=now+1hour")
    again = [
        "slurm",
        "configs/base.yaml",
        f"data.root={digits}",
        f"run.dir={training.run_dir}",
        "batch.micro=8",
        "data.resolution=16",
    ]
    error = training.cluster.launch(*again, expect=2)
    assert f"job {training.job_id} has it (PENDING)" in error
    training.cluster.launch("cancel", training.run_dir)
    training.cluster.wait(training.job_id, "CANCELLED", "GONE")


def test_srun_with_one_task_a_process(cluster: Any, calm: Any, digits: Path, tmp_path: Path) -> None:
    config = calm.run_dir / "config.yaml"
    command = ["srun", "-N2", "-n4", "--ntasks-per-node=2", sys.executable, "-m", "pipeline", "train", str(config)]
    few = [f"run.dir={tmp_path / 'run'}", "train.epochs=4st", "schedule.warmup=0st", "eval.every=4st", "track.enabled=false"]
    done = subprocess.run([*command, *few], capture_output=True, text=True, env=os.environ | cluster.env, check=False)
    assert done.returncode == 0, done.stderr
    assert "on 4 x cpu" in done.stdout and "step   4/4" in done.stdout.replace("step 4/4", "step   4/4")


def test_one_task_a_process_is_requeued_too(submit: Submit) -> None:
    training = submit("task-per-gpu", "--task-per", "gpu", "track.enabled=false")
    training.reaches(60)
    training.cluster.ask("scancel", "--signal=USR1", training.job_id)
    training.finished()
    assert training.resumed()[0] % 50 and "SIGUSR1" in training.requeues()[0]["reason"]


def test_a_sweep_is_one_array_with_one_parent(cluster: Any, digits: Path, calm: Any, shared: Path) -> None:
    config = calm.run_dir / "config.yaml"
    store = f"sqlite:///{shared}/sweep.db"
    fixed = ["train.epochs=4st", "schedule.warmup=0st", "eval.every=4st", f"run.root={shared / 'sweeps'}", f"track.uri={store}"]
    command = ["sweep", config, "seed=0..1", "optim.lr=0.1,0.2", *fixed, "--name", "grid"]
    assert len(json.loads(cluster.launch(*command, "--dry-run", "--json"))) == 4
    array = json.loads(cluster.launch(*command, "--slurm", "--gpus-per-node", "1", "--array-parallelism", "2", "--json"))
    runs = [Path(array["folder"]) / f"{n:03d}" for n in range(4)]
    until = sys.modules["cluster"].until
    until(lambda: all((run / "model.safetensors").is_file() for run in runs), "all members", 300)
    until(lambda: not cluster.ask("squeue", "-h"), "the array to end")
    import sqlite3

    with closing(sqlite3.connect(shared / "sweep.db")) as database:
        found = dict(database.execute("SELECT name, run_uuid FROM runs").fetchall())
        query = "SELECT run_uuid FROM tags WHERE key = 'mlflow.parentRunId' AND value = ?"
        children = database.execute(query, (found["grid"],)).fetchall()
    assert sorted(found) == ["grid", "grid-0", "grid-1", "grid-2", "grid-3"] and len(children) == 4
    assert "every member has finished" in cluster.launch(*command, "--slurm", "--gpus-per-node", "1", expect=2)


def test_an_array_of_seeds(cluster: Any, digits: Path, calm: Any, shared: Path) -> None:
    config = calm.run_dir / "config.yaml"
    few = ["train.epochs=4st", "schedule.warmup=0st", "eval.every=4st", f"run.root={shared / 'seeds'}", "track.enabled=false"]
    command = ["slurm", config, *few, "--gpus-per-node", "1", "--array", "3,5%1"]
    assert "#SBATCH --array=0-1%1" in cluster.launch(*command, "--dry-run")
    array = json.loads(cluster.launch(*command, "--json"))
    runs = [Path(array["folder"]) / f"{n:03d}" for n in range(2)]
    sys.modules["cluster"].until(lambda: all((run / "model.safetensors").is_file() for run in runs), "both runs", 300)
    assert [json.loads((run / "launch" / "submission.json").read_text())["run_dir"] for run in runs] == list(map(str, runs))
    assert [(run / "config.yaml").read_text().splitlines()[0] for run in runs] == ["seed: 3", "seed: 5"]


def test_preflight_on_all_nodes(cluster: Any, digits: Path, tmp_path: Path) -> None:
    there = ["configs/demo.yaml", f"data.root={digits}", f"run.root={tmp_path}"]
    command = ["srun", "-N2", "-n4", "--ntasks-per-node=2", sys.executable, "-m", "launch", "preflight", *there]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | cluster.env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 nodes (node1, node2): the same versions" in done.stdout and "over 4 processes in" in done.stdout
