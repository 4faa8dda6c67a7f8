"""What only a GPU can show; skipped without one. `pytest tests/gpu -m gpu`."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import load, make_plan
from pipeline.data.loader import open_dataset, train_loader
from pipeline.world import World

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
STEPS = ("train.epochs=24st", "schedule.warmup=4st", "train.checkpoint_every=5st", "eval.every=10st", "train.log_every=1")


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_training_runs_in_each_precision(trainer: Any, precision: str) -> None:
    output = trainer.run(*STEPS, f"train.precision={precision}")
    assert "1 x cuda" in output and "top-1" in output


def test_the_gpu_decodes_what_the_cpu_decodes(digits: Path) -> None:
    cfg = load(None, [f"data.root={digits}", "data.resolution=32", "batch.micro=64", "schedule.warmup=0ep", "train.epochs=3st"])
    world = World(device=torch.device("cuda", 0))
    dataset = open_dataset(cfg, world)
    plan = make_plan(cfg, world_size=1, train_images=len(dataset.train), val_images=len(dataset.val), classes=10)
    batches = {}
    for place in ("cpu", "gpu"):
        chosen = cfg.model_copy(update={"data": cfg.data.model_copy(update={"executor": "dali", "device": place})})
        loader = train_loader(chosen, plan, world, dataset, 0)
        batches[place] = [(b.images.cpu(), b.labels.cpu(), b.ids) for b in loader]
        loader.close()
    for (a, labels_a, ids_a), (b, labels_b, ids_b) in zip(batches["cpu"], batches["gpu"], strict=True):
        difference = (a.int() - b.int()).abs()
        assert difference.float().mean() <= 1.0 and difference.max() <= 16  # nvJPEG's inverse DCT is another one
        assert labels_a.equal(labels_b) and (ids_a == ids_b).all()


def test_a_deterministic_run_is_repeated_to_the_bit(trainer: Any, tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        trainer.run(*STEPS, "train.deterministic=true", "train.precision=fp32", f"run.dir={tmp_path / name}")
        found.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(found[0][k].equal(found[1][k]) for k in found[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_gpus_learn_what_one_learns(trainer: Any, tmp_path: Path) -> None:
    found = []
    for world in (1, 2):
        trainer.run(*STEPS, "train.precision=fp32", f"run.dir={tmp_path / str(world)}", world=world)
        found.append(load_file(tmp_path / str(world) / "model.safetensors"))
    for name, one in found[0].items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(found[1][name], one, rtol=1e-2, atol=1e-2)
