import json
from pathlib import Path

import pytest

from launch import requeue
from launch.snapshot import Folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    (tmp_path / "launch").mkdir()
    return Folder(tmp_path)


@pytest.mark.parametrize(
    ("noted", "srun", "expected"),
    [
        ((75, "signal SIGUSR2"), 0, (75, "signal SIGUSR2")),
        ((75, ""), 0, (75, "stopped before the training began")),
        ((0, ""), 0, (0, "")),
        ((130, "signal SIGINT"), 0, (130, "")),
        ((2, ""), 2, (2, "")),
        (None, 1, (1, "")),
        (None, 137, (137, "a task was killed (srun ended with 137)")),
    ],
)
def test_what_follows_the_end_of_the_tasks(
    folder: Folder, noted: tuple[int, str] | None, srun: int, expected: tuple[int, str]
) -> None:
    if noted:
        requeue.note(folder, *noted)
    assert requeue.decide(folder, srun) == expected


def test_the_last_words_of_an_earlier_start_do_not_count(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    requeue.note(folder, 75, "signal SIGUSR2")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert requeue.decide(folder, 1) == (1, "")


def test_the_history(folder: Folder) -> None:
    assert requeue.history(folder) == []
    requeue.append(folder, "because")
    ((one,),) = (requeue.history(folder),)
    assert (one["job"], one["restart"], one["reason"]) == ("7", 2, "because")


def test_members_of_an_array(tmp_path: Path) -> None:
    assert requeue.of_this_job(tmp_path, {}) == tmp_path
    (tmp_path / requeue.MEMBERS).write_text(json.dumps(["/a", "/b"]))
    assert requeue.of_this_job(tmp_path, {"SLURM_ARRAY_TASK_ID": "1"}) == Path("/b")
    assert requeue.of_this_job(tmp_path, {}) == Path("/a")


def test_a_member_of_an_array_is_not_taken_for_the_whole() -> None:
    assert requeue.own_id({"SLURM_JOB_ID": "7"}) == "7"
    assert requeue.own_id({"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}) == "7_3"
