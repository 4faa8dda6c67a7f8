from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import CheckpointError, UsageError
from pipeline.train import checkpoint
from pipeline.train.checkpoint import Store


def state(step: int) -> dict[str, object]:
    return {"model": {"w": torch.full((100,), float(step))}, "step": step}


def test_the_newest_is_found_and_old_ones_go(tmp_path: Path) -> None:
    store = Store(tmp_path / "checkpoints", keep=2)
    assert store.newest() is None
    for step in (5, 10, 100):
        store.save(state(step), step)
    store.save_best(state(10))
    assert [p.name for p in store.steps()] == ["step-000000010.pt", "step-000000100.pt"]
    newest = store.newest()
    assert newest is not None and checkpoint.load(newest)["step"] == 100
    assert checkpoint.load(store.best)["step"] == 10
    assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.endswith(".tmp")]


def test_a_file_that_is_no_checkpoint_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "step-x.pt").touch()
    (tmp_path / ".step-000000009.pt.77.tmp").touch()
    assert Store(tmp_path).newest() is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(0, 0.999))
def test_a_checkpoint_cut_anywhere_is_an_error_that_names_it(tmp_path: Path, share: float) -> None:
    path = Store(tmp_path).save(state(1), 1)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(CheckpointError, match=r"step-000000001.pt: truncated, damaged or not a checkpoint; delete it"):
        checkpoint.load(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.pt")
    torch.save({"w": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="not a checkpoint of this pipeline"):
        checkpoint.load(tmp_path / "weights.pt")


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("evil-was-here"),))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"format": 1, "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError):
        checkpoint.load(tmp_path / "evil.pt")
    assert not Path("evil-was-here").exists()


def test_a_place_that_cannot_be_written_is_named_and_left_clean(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file/checkpoints/step-000000001.pt: can't write"):
        Store(tmp_path / "file" / "checkpoints").save(state(1), 1)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
