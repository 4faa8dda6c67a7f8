"""Which of several processes' exit codes an agent ends with."""

from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from launch import agent
from pipeline.train import failure


def ended(*codes: int) -> ChildFailedError:
    failures = {rank: ProcessFailure(rank, 1000 + rank, code, "") for rank, code in enumerate(codes)}
    return ChildFailedError("train", failures)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [((1,), 1), ((-9, 69), 137), ((69, 1), 1), ((69, 69), 69), ((69, 70), 70), ((69, 2), 2), ((1, 70), 70), ((-15, 2), 2)],
)
def test_the_reason_goes_over_those_that_lost_it(codes: tuple[int, ...], expected: int) -> None:
    assert agent._exit_code(ended(*codes), agent.Group(2)) == expected


def test_a_failure_on_another_node_is_the_reason_here_too(tmp_path: Path) -> None:
    group = agent.Group(2, max_nodes=2, run_id="x", run_dir=tmp_path)
    failure.write(tmp_path, failure.Failure(code=70, step=3, error="out of memory", rank=3, launch="x", restart=0))
    assert agent._exit_code(ended(69, 69), group) == 70
    failure.write(tmp_path, failure.Failure(code=70, step=3, error="out of memory", rank=3, launch="y", restart=0))
    assert agent._exit_code(ended(69, 69), group) == 69
    assert agent._exit_code(ended(69, 69), agent.Group(2)) == 69


def test_ends_for_good_have_an_order() -> None:
    assert agent._outcome([0, 75, 2, 70]) == 70 and agent._outcome([0, 75]) == 75 and agent._outcome([0, 0]) == 0
