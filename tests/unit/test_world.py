import subprocess
import sys

import pytest

from pipeline.errors import DataError, PipelineError, WorldError
from pipeline.world import World, from_env

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


def test_no_variables_is_a_world_of_one() -> None:
    world = from_env({})
    assert (world.rank, world.size, world.is_main) == (0, 1, True)


def test_torchruns_variables() -> None:
    world = from_env(TORCHRUN)
    assert (world.rank, world.size, world.local_rank, world.local_size, world.is_main) == (1, 2, 1, 2, False)


@pytest.mark.parametrize("absent", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_set_variables_are_named(absent: str) -> None:
    with pytest.raises(WorldError, match=f"not {absent}"):
        from_env({k: v for k, v in TORCHRUN.items() if k != absent})


@pytest.mark.parametrize("change", [{"RANK": "2"}, {"RANK": "x"}, {"RANK": "-1"}, {"LOCAL_RANK": "5"}])
def test_contradictions_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(WorldError, match="torchrun"):
        from_env(TORCHRUN | change)


SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "nowhere[1-2]",
    "SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1",
}


def test_sruns_variables() -> None:
    world = from_env(SRUN)
    assert (world.rank, world.size, world.local_rank, world.local_size) == (3, 4, 1, 2)
    assert world.address == "127.0.0.1:15217"
    assert from_env(SRUN | {"SLURM_STEP_NODELIST": "localhost"}).address == "localhost:15217"
    assert from_env(SRUN | {"MASTER_ADDR": "a", "MASTER_PORT": "5"}).address == "a:5"


def test_torchrun_comes_before_srun() -> None:
    assert from_env(SRUN | TORCHRUN).size == 2


def test_one_task_and_a_batch_script_are_alone() -> None:
    assert from_env(SRUN | {"SLURM_STEP_NUM_TASKS": "1"}).size == 1
    assert from_env({k: v for k, v in SRUN.items() if k != "SLURM_STEP_ID"}).size == 1


@pytest.mark.parametrize("absent", ["SLURM_PROCID", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_NODELIST"])
def test_half_of_sruns_variables(absent: str) -> None:
    with pytest.raises(WorldError, match=f"not {absent}"):
        from_env({k: v for k, v in SRUN.items() if k != absent})


def test_srun_that_contradicts_itself() -> None:
    with pytest.raises(WorldError, match="SLURM_PROCID=4"):
        from_env(SRUN | {"SLURM_PROCID": "4"})


def test_alone_together_returns_or_raises() -> None:
    def fail() -> None:
        raise DataError("bad")

    assert World().together(lambda: 3) == 3
    with pytest.raises(PipelineError, match="bad"):
        World().together(fail)


def test_leaving_an_open_group_keeps_the_code_and_takes_nothing_down() -> None:
    code = """
import atexit, torch.distributed as dist
from pipeline.world import leave
leave(3)  # no group: returns
atexit.register(lambda: print("taken down"))
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
print("said before")
leave(75)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (75, "said before\n"), done.stderr
