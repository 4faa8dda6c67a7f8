"""One, two and four processes learn the same, up to rounding."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

COMMON = ("train.epochs=20st", "eval.every=20st", "train.checkpoint_every=20st", "schedule.warmup=4st", "seed=3")


@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-9), ("fp32", 1e-3)])
def test_worlds_end_with_the_same_weights(trainer: Any, tmp_path: Path, precision: str, tolerance: float) -> None:
    found = {}
    for world in (1, 2, 4):
        trainer.run(*COMMON, f"train.precision={precision}", f"run.dir={tmp_path / str(world)}", world=world)
        found[world] = load_file(tmp_path / str(world) / "model.safetensors")
    start = load_file(_untrained(trainer, tmp_path, precision))
    for world in (2, 4):
        assert found[world].keys() == found[1].keys()
        for name, one in found[1].items():
            if name.endswith("num_batches_tracked"):
                continue
            scale = one.double().abs().max()
            worst = (found[world][name].double() - one.double()).abs().max() / scale
            assert worst <= tolerance, (world, name, worst)
    moved = max(float((found[1][k].double() - start[k].double()).abs().max()) for k in start if k.endswith("weight"))
    assert moved > 0.01, "the training did nothing, so the comparison says nothing"


def _untrained(trainer: Any, tmp_path: Path, precision: str) -> Path:
    """The weights after one step of an infinitesimal learning rate."""
    tiny = ("train.epochs=1st", "schedule.warmup=0st", "optim.lr=1e-30", "seed=3", f"train.precision={precision}")
    trainer.run(*tiny, f"run.dir={tmp_path / 'start'}")
    return tmp_path / "start" / "model.safetensors"
