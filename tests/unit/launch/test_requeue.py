import errno
import json
from pathlib import Path
from typing import Any

import pytest

from launch import requeue, snapshot
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
        ((69, "no space left"), 69, (69, "no space left")),
        ((70, ""), 70, (70, "")),
        (None, 1, (1, "")),
        (None, 69, (69, "a task met trouble that may pass; its log says which")),
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


def test_a_disk_that_fails_loses_no_requeue(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requeue, "PATIENCE_S", 0.2)
    requeue.note(folder, 75, "signal SIGUSR2")

    def stale(*_: object, **__: object) -> str:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as failing:
        failing.setattr(Path, "read_text", stale)
        assert requeue.decide(folder, 0) == (69, f"{folder.path / 'outcome.json'}: Stale file handle")
    tries: list[int] = []
    real = Path.write_text

    def full_at_first(path: Path, *arguments: Any, **more: Any) -> int:
        tries.append(1)
        if len(tries) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *arguments, **more)

    monkeypatch.setattr(Path, "write_text", full_at_first)
    requeue.append(folder, "because", 2)
    assert len(tries) == 3 and [one["reason"] for one in requeue.history(folder)] == ["because"]
    monkeypatch.setattr(snapshot, "retry", lambda work, *_, **__: work())
    tries.clear()
    requeue.append(folder, "not put down", 3)  # a warning, no error: the requeue matters more than its record
    assert len(requeue.history(folder)) == 1


FORGED = ["", "[]", "3", '{"job": "7", "restart": 2}', '{"job": "7", "restart": 2, "code": "75", "reason": 1}', "\0" * 9]


@pytest.mark.parametrize("content", FORGED)
def test_a_word_that_makes_no_sense_says_nothing(folder: Folder, content: str) -> None:
    (folder.path / "outcome.json").write_text(content)
    assert requeue.decide(folder, 1) == (1, "")


def test_lines_that_make_no_sense_count_as_requeues_without_progress(folder: Folder) -> None:
    folder.write({"job": "7", "max_requeues": 50, "max_idle_requeues": 2})
    folder.requeues.write_text(
        '{"job": "7", "reason": "", "ended": 1, "step": "x"}\n[]\n{"job": "7", "reason": "", "ended": []}\n'
    )
    assert requeue.limit(folder, 2).startswith("no step beyond 0 was saved in 2 requeues")


def test_the_history(folder: Folder) -> None:
    assert requeue.history(folder) == []
    requeue.append(folder, "because", 2)
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
