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
from pipeline.errors import TransientError, UsageError
from pipeline.track.journal import Journal
from pipeline.train import failure


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A run on two nodes whose job is about to start on the first of them."""
    for name, value in {"JOB_ID": "7", "RESTART_COUNT": "0", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURMD_NODENAME", "a")
    found = Folder(tmp_path / "run")
    found.path.mkdir(parents=True)
    options = Options(nodes=2, nproc_per_node=1).model_dump(mode="json")
    found.write({"job": "7", "options": options, "max_requeues": 50, "max_idle_requeues": 3, "max_restarts": 1, "tags": {}})
    cfg = load(None, [f"data.root={tmp_path}", f"run.dir={tmp_path / 'run'}", "data.executor=synthetic"])
    found.config.write_text(to_yaml(cfg), encoding="utf-8")
    (found.path / "nodes" / "7-0").mkdir(parents=True)
    return found


def end(folder: Folder) -> int:
    with pytest.raises(SystemExit) as ended:
        job.Task(folder.run_dir)()
    return int(ended.value.code or 0)


def test_broken_lines_of_the_requeues_are_passed_over(folder: Folder) -> None:
    requeue.append(folder, "first", 0)
    with folder.requeues.open("ab") as file:
        file.write(b'{"t": 1, "reas\n\xff\n[]\n')
    requeue.append(folder, "second", 1)
    assert [one["reason"] for one in requeue.history(folder)] == ["first", "second"]


def test_a_node_that_is_unfit_ends_the_job_for_good(folder: Folder) -> None:
    other = {"node": "b", "time": 0.0, "versions": {}, "failed": ["no data"]}
    (folder.path / "nodes" / "7-0" / "b.json").write_text(json.dumps(other))
    assert end(folder) == 2
    assert requeue.decide(folder, 137) == (137, "")  # the other task waited to be met, and was killed


def test_nodes_that_do_not_come_together_are_no_end_for_good(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(*_: Any) -> int:
        raise TransientError("the nodes did not come together")

    monkeypatch.setattr(job, "_run", apart)
    assert end(folder) == 69
    assert requeue.decide(folder, 137) == (69, "a task was killed (srun ended with 137); the nodes did not come together")


def test_a_node_that_is_late_brings_the_job_back(folder: Folder) -> None:
    cfg = load(folder.config, ["launch.join_timeout_s=0.3"])
    folder.config.write_text(to_yaml(cfg), encoding="utf-8")
    assert end(folder) == 69
    assert "1 of 2 nodes did not report" in requeue.decide(folder, 137)[1]


def test_what_failed_for_good_on_another_node_is_not_hidden_by_those_that_lost_it(folder: Folder) -> None:
    requeue.note(folder, 2, "no data")
    requeue.note(folder, 69, "a rank answered no more")
    assert requeue.decide(folder, 137) == (137, "")
    requeue.note(folder, 75, "")
    alone = failure.Failure(code=70, step=3, error="out of memory", rank=3, launch="7-0", restart=0)
    failure.write(folder.run_dir, alone)
    assert requeue.decide(folder, 69) == (70, "")


@pytest.mark.parametrize("keeps", [True, False])
def test_a_job_that_saves_no_new_step_is_given_up(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keeps: bool
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(scontrol, "job", lambda job_id: scontrol.Job(job_id, "RUNNING"))
    monkeypatch.setattr(scontrol, "call", lambda *command: asked.append(command))
    (folder.run_dir / "checkpoints").mkdir()
    codes = []
    for start, step in enumerate([10, 20, 20, 20, 20]):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(start))
        (folder.run_dir / "checkpoints" / f"step-{step:09d}.pt").touch()
        requeue.note(folder, 69, "no space left")
        codes.append(requeue.main(folder.run_dir, 69))
        if not keeps:
            folder.requeues.unlink(missing_ok=True)  # as on a disk that is full
    if keeps:
        assert codes == [69, 69, 69, 69, 1] and len(asked) == 4
        said = capsys.readouterr().err
        assert "error: no space left: no step beyond 20 was saved in 3 requeues (launch.max_idle_requeues=3)" in said
        assert f"python -m launch resubmit {folder.run_dir}" in said
    else:
        assert codes == [69, 69, 69, 1, 1]


def test_a_job_that_slurm_brings_back_in_vain_is_given_up_too(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "compare", lambda *_: None)
    monkeypatch.setattr(job, "_agent", lambda *_: 0)
    for start in range(5):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(start))
        if start < 4:
            job._count(folder)
        else:
            assert end(folder) == 2
    assert requeue.decide(folder, 2) == (2, "")


def test_a_file_that_stops_the_training_and_is_gone_then_keeps_the_job_from_coming_back(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(folder.run_dir) as journal:
        journal.event("status", status="SCHEDULED", reason=f"stopped after step 3 of 9 by the file {folder.run_dir / 'STOP'}")
    job._conclude(folder, 75)
    assert requeue.decide(folder, 0) == (130, "")


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
