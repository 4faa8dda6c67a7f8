"""One, two and four processes learn the same, up to rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.config.schema import Model
from pipeline.model import zoo

# At a rate at which fp32 does not amplify its rounding: above it, one ReLU that flips shows as 1 % in a small bias.
COMMON = (
    "train.epochs=20st",
    "eval.every=20st",
    "train.checkpoint_every=20st",
    "schedule.warmup=4st",
    "seed=3",
    "optim.lr=0.05",
)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp64", 1e-9), ("fp32", 1e-3)])
def test_worlds_end_with_the_same_weights(trainer: Any, tmp_path: Path, precision: str, tolerance: float) -> None:
    found = {}
    for world in (1, 2, 4):
        trainer.run(*COMMON, f"train.precision={precision}", f"run.dir={tmp_path / str(world)}", world=world)
        found[world] = load_file(tmp_path / str(world) / "model.safetensors")
    start = _untrained()
    for world in (2, 4):
        assert found[world].keys() == found[1].keys()
        for name, one in found[1].items():
            if name.endswith("num_batches_tracked"):
                continue
            scale = one.double().abs().max()
            worst = (found[world][name].double() - one.double()).abs().max() / scale
            assert worst <= tolerance, (world, name, worst)
    moved = max(float((found[1][k].double() - start[k].double()).abs().max()) for k in start if k.endswith("weight"))
    assert moved > 0.005, "the training did nothing, so the comparison says nothing"


def _untrained() -> dict[str, Tensor]:
    """The weights that the same seed starts with."""
    shape = {"block": "basic", "n_blocks": [1, 1], "n_channels": [8, 16], "first_kernel_size": 3}
    torch.manual_seed(3)
    return zoo.build(Model(name="resnet", **shape), 10).state_dict()
