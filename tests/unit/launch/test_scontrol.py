import pytest

from launch import scontrol


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
