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


def test_a_bare_srun_of_several_tasks_is_refused() -> None:
    with pytest.raises(WorldError, match="4 tasks"):
        from_env({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"})
    assert from_env({"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"}).size == 1


def test_alone_together_returns_or_raises() -> None:
    def fail() -> None:
        raise DataError("bad")

    assert World().together(lambda: 3) == 3
    with pytest.raises(PipelineError, match="bad"):
        World().together(fail)
