import pytest

from launch.torchrun import Meeting, group
from pipeline.config import load
from pipeline.errors import UsageError

CFG = load(None, ["run.dir=/tmp/run", "batch.global=auto"])


def test_a_fixed_and_an_elastic_number_of_nodes() -> None:
    found = group(CFG, Meeting("2:4", 3, "node1:29400", "x"))
    assert (found.min_nodes, found.max_nodes, found.nproc, found.endpoint, found.run_id) == (2, 4, 3, "node1:29400", "x")
    assert group(CFG, Meeting("1", 2)).max_nodes == 1


@pytest.mark.parametrize(
    ("meeting", "said"),
    [(Meeting("0"), "--nnodes"), (Meeting("4:2"), "--nnodes"), (Meeting("x"), "--nnodes"), (Meeting("2"), "--rdzv-endpoint")],
)
def test_what_can_not_work(meeting: Meeting, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        group(CFG, meeting)


def test_a_restart_has_to_find_the_run() -> None:
    with pytest.raises(UsageError, match="run.dir: not set"):
        group(load(None), Meeting("2", 1, "a:1"))


def test_a_node_that_joins_must_not_break_the_batch() -> None:
    changes = ["run.dir=/tmp/run", "batch.global=32", "batch.micro=8"]
    with pytest.raises(UsageError, match=r"--nnodes: 3 nodes of 1 processes each can't share .*, of these only 1, 2 can"):
        group(load(None, changes), Meeting("1:3", 1, "a:1"))
    assert group(load(None, changes), Meeting("1:2", 1, "a:1")).max_nodes == 2
    assert group(load(None, [*changes, "batch.global=auto"]), Meeting("1:3", 1, "a:1")).max_nodes == 3
