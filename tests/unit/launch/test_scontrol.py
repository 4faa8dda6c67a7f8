import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import requeue, scontrol
from launch.snapshot import Folder
from pipeline.errors import TransientError, UsageError


@pytest.mark.parametrize(
    ("gres", "expected"), [("gpu:4", 4), ("gpu:a100:8(S:0-1)", 8), ("(null)", 0), ("gpu:a:2,gpu:b:1,shard:9", 3), ("", 0)]
)
def test_gpus_of_a_node(gres: str, expected: int) -> None:
    assert scontrol.gpus(gres) == expected


def test_fields_of_one_line() -> None:
    assert scontrol.fields("JobId=3 JobState=RUNNING Reason=None Dependency=(null)") == {
        "JobId": "3",
        "JobState": "RUNNING",
        "Reason": "None",
        "Dependency": "(null)",
    }


@pytest.mark.parametrize(
    ("state", "reason", "restarts", "expected"),
    [
        ("CANCELLED", "", 2, True),
        ("COMPLETING", "", 2, True),
        ("COMPLETING", "", 3, False),
        ("COMPLETING", "TimeLimit", 2, False),
        ("RUNNING", "", 2, False),
    ],
)
def test_a_cancelled_job_is_told_from_one_to_be_requeued(state: str, reason: str, restarts: int, expected: bool) -> None:
    assert scontrol.Job("7", state, reason, restarts=restarts).cancelled(2) == expected


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A `scontrol` that says what it is told to, one answer after the other, and the last one again and again."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def give(*texts: str) -> None:
        for n, text in enumerate(texts):
            (tmp_path / f"answer.{n}").write_text(text)
        script = f"""#!/bin/sh
n=$(cat {tmp_path}/n 2>/dev/null || echo 0)
echo $((n < {len(texts) - 1} ? n + 1 : n)) > {tmp_path}/n
. {tmp_path}/answer.$n
"""
        (tmp_path / "n").unlink(missing_ok=True)
        (tmp_path / "scontrol").write_text(script)
        (tmp_path / "scontrol").chmod(0o755)

    return give


BUSY = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"


def test_a_busy_controller_is_asked_again(answers: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    answers(BUSY, "echo 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2; exit 1", "echo done")
    assert scontrol.insist(lambda: scontrol.call("scontrol", "requeue", "7")) == "done\n"
    assert capsys.readouterr().err.startswith("warning: scontrol requeue 7: slurm_load_jobs error: Unable to contact")


def test_a_controller_that_does_not_come_back_is_trouble_that_may_pass(answers: Callable[..., None]) -> None:
    answers(BUSY)
    with pytest.raises(TransientError, match="Unable to contact"):
        scontrol.insist(lambda: scontrol.job("7"), wait_s=0.3)


def test_what_is_refused_is_not_asked_again(answers: Callable[..., None]) -> None:
    answers("echo 'Access/permission denied' >&2; exit 1", "echo never")
    with pytest.raises(UsageError, match="denied"):
        scontrol.insist(lambda: scontrol.call("scontrol", "requeue", "7"))
    answers("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert scontrol.job("7") == scontrol.Job("7")


def test_a_controller_that_is_silent_once_loses_no_requeue(
    answers: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    answers(BUSY, "echo JobId=7 JobState=RUNNING Restarts=0", BUSY, f'echo "$@" > {asked}')
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    folder = Folder(tmp_path / "run")
    folder.path.mkdir(parents=True)
    folder.write({"job": "7", "max_requeues": 50, "max_idle_requeues": 3})
    requeue.note(folder, 75, "signal SIGUSR2")
    assert requeue.main(folder.run_dir, 0) == 75
    assert asked.read_text() == "requeue 7\n" and len(requeue.history(folder)) == 1


def test_all_jobs_are_asked_for_with_one_question(answers: Callable[..., None], tmp_path: Path) -> None:
    rows = [
        "JobId=7 JobName=a Restarts=2 JobState=RUNNING Reason=None NodeList=node1",
        "JobId=12 ArrayJobId=9 ArrayTaskId=3 JobState=RUNNING Reason=None",
        "JobId=9 ArrayJobId=9 ArrayTaskId=4-8:2,11%2 JobState=PENDING Reason=Resources",
    ]
    printed = "\n".join(f"echo {row}" for row in rows)
    answers(f"{printed}\necho $* >> {tmp_path}/asked")
    found = scontrol.jobs(["7", "9_3", "9_6", "9_11", "9_7", "9", "5", ""])
    assert found["7"] == scontrol.Job("7", "RUNNING", "", "node1", 2)
    states = [found[one].state for one in ("9_3", "9_6", "9_11", "9_7", "9", "5", "")]
    assert states == ["RUNNING", "PENDING", "PENDING", "GONE", "RUNNING", "GONE", "GONE"]
    assert (tmp_path / "asked").read_text() == "show job --oneliner\n"
