"""With everything that a recipe can switch on, one process and two learn the same."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

EVERYTHING = (
    "train.epochs=12st",
    "eval.every=12st",
    "train.checkpoint_every=12st",
    "schedule.warmup=4st",
    "seed=3",
    "train.precision=fp64",
    "data.repeats=2",
    "augment.policy=trivial",
    "mix.mixup=0.2",
    "mix.cutmix=1.0",
    "model.drop_path=0.2",
    "optim.clip_norm=0.5",
    "ema.half_life=4",
)


def test_worlds_end_with_the_same_weights_and_averages(trainer: Any, tmp_path: Path) -> None:
    for world in (1, 2):
        trainer.run(*EVERYTHING, f"run.dir={tmp_path / str(world)}", world=world)
    for file in ("model.safetensors", "model_ema.safetensors"):
        one, two = (load_file(tmp_path / str(world) / file) for world in (1, 2))
        for name in one:
            if not name.endswith("num_batches_tracked"):
                scale = one[name].double().abs().max()
                assert (one[name].double() - two[name].double()).abs().max() <= 1e-9 * scale, (file, name)
