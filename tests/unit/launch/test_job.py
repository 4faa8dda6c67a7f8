"""How a task of a job ends, and what the batch shell makes of it; nothing is trained."""

import json
import signal
from pathlib import Path
from typing import Any, NoReturn

import pytest

from launch import job, preflight, requeue, scontrol
from launch.options import Options
from launch.snapshot import Folder
from pipeline.config import load, to_yaml
from pipeline.errors import UsageError, WorldError
from pipeline.track.journal import Journal


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A run on two nodes whose job is about to start on the first of them."""
    for name, value in {"JOB_ID": "7", "RESTART_COUNT": "0", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURMD_NODENAME", "a")
    found = Folder(tmp_path / "run")
    found.path.mkdir(parents=True)
    options = Options(nodes=2, nproc_per_node=1).model_dump(mode="json")
    found.write({"job": "7", "options": options, "max_requeues": 50, "max_restarts": 1, "tags": {}})
    cfg = load(None, [f"data.root={tmp_path}", f"run.dir={tmp_path / 'run'}", "data.executor=synthetic"])
    found.config.write_text(to_yaml(cfg), encoding="utf-8")
    (found.path / "nodes" / "7-0").mkdir(parents=True)
    return found


def end(folder: Folder) -> int:
    with pytest.raises(SystemExit) as ended:
        job.Task(folder.run_dir)()
    return int(ended.value.code or 0)


def test_broken_lines_of_the_requeues_are_passed_over(folder: Folder) -> None:
    requeue.append(folder, "first")
    with folder.requeues.open("ab") as file:
        file.write(b'{"t": 1, "reas\n\xff\n[]\n')
    requeue.append(folder, "second")
    assert [one["reason"] for one in requeue.history(folder)] == ["first", "second"]


def test_a_node_that_is_unfit_ends_the_job_for_good(folder: Folder) -> None:
    other = {"node": "b", "time": 0.0, "versions": {}, "failed": ["no data"]}
    (folder.path / "nodes" / "7-0" / "b.json").write_text(json.dumps(other))
    assert end(folder) == 2
    assert requeue.decide(folder, 137) == (137, "")  # the other task waited to be met, and was killed


def test_nodes_that_do_not_come_together_are_no_end_for_good(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(*_: Any) -> int:
        raise WorldError("a task was killed, and its node is not there")

    monkeypatch.setattr(job, "_run", apart)
    assert end(folder) == 2
    assert requeue.decide(folder, 137)[1].startswith("a task was killed")


def stopped(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the training save and stop in a container, which has no SLURM."""

    def missing(_: str) -> NoReturn:
        raise UsageError("scontrol: [Errno 2] No such file or directory: 'scontrol'")

    monkeypatch.setattr(preflight, "compare", lambda *_: None)
    monkeypatch.setattr(job, "_agent", lambda *_: 75)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(scontrol, "job", missing)
    with Journal(folder.run_dir) as journal:
        journal.event("status", status="SCHEDULED", reason="signal SIGTERM")
    job.Task(folder.run_dir)()


def batch_shell(folder: Folder, monkeypatch: pytest.MonkeyPatch, state: str) -> list[tuple[str, ...]]:
    """Run the batch shell's last step outside of the container; return what it asks of SLURM."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(scontrol, "job", lambda job_id: scontrol.Job(job_id, state))
    monkeypatch.setattr(scontrol, "call", lambda *command: asked.append(command))
    assert requeue.main(folder.run_dir, 0) == 75
    return asked


def test_a_stop_in_a_container_is_requeued(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(folder, monkeypatch)
    assert batch_shell(folder, monkeypatch, "RUNNING") == [("scontrol", "requeue", "7")]
    assert requeue.history(folder)[0]["reason"] == "signal SIGTERM"


def test_a_job_in_a_container_that_was_cancelled_is_killed(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(folder, monkeypatch)
    assert batch_shell(folder, monkeypatch, "COMPLETING") == []
    assert job.last_words(folder.run_dir) == ("KILLED", "cancelled with scancel")
