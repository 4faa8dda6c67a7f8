"""Everything that a recipe can switch on at once: killed, resumed, evaluated, warned of and refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

EVERYTHING = (
    "train.epochs=24st",
    "schedule.warmup=4st",
    "train.checkpoint_every=5st",
    "eval.every=12st",
    "train.log_every=1",
    "eval.flip=true",
    "data.interpolation=bicubic",
    "data.repeats=2",
    "augment.policy=randaugment",
    "augment.erase=0.3",
    "augment.jitter=[0.2, 0.2, 0.2, 0.1]",
    "mix.mixup=0.2",
    "mix.cutmix=1.0",
    "model.drop_path=0.2",
    "model.blurpool=true",
    "optim.name=lamb",
    "optim.momentum=0.875",
    "optim.nesterov=false",
    "optim.lr=0.01",
    "optim.lr_per=null",
    "optim.clip_norm=1.0",
    "loss.name=binary_cross_entropy",
    "ema.half_life=5",
    "ema.every=2",
    "expect.top1={1: [0.99, 1.0]}",
)


def test_killed_and_started_again_ends_bit_identical(trainer: Any, tmp_path: Path) -> None:
    trainer.run(*EVERYTHING, f"run.dir={tmp_path / 'calm'}")
    process = trainer.start(*EVERYTHING, f"run.dir={tmp_path / 'run'}")
    trainer.until(process, lambda line: bool(re.search(r"step\s+13/24 ", line)))
    trainer.kill(process)
    assert "going on after step 1" in trainer.run(*EVERYTHING, f"run.dir={tmp_path / 'run'}")
    for name in ("model.safetensors", "model_ema.safetensors"):
        found, expected = (load_file(tmp_path / run / name) for run in ("run", "calm"))
        assert found.keys() == expected.keys() and not [k for k in found if not found[k].equal(expected[k])]
    raw, averaged = (load_file(tmp_path / "run" / name) for name in ("model.safetensors", "model_ema.safetensors"))
    assert not raw["conv1.weight"].equal(averaged["conv1.weight"])


def test_a_run_outside_its_band_is_warned_of_in_log_and_journal(trainer: Any, tmp_path: Path) -> None:
    keys = ("train.epochs=1ep", "schedule.warmup=0st", "expect.top1={1: [0.99, 1.0]}", "ema.half_life=5")
    output = trainer.run(*keys, f"run.dir={tmp_path / 'run'}")
    (warning,) = re.findall(r"warning: (epoch 1: [\d.]+% top-1, expected 99-100 %)", output)
    records = [json.loads(line) for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines()]
    assert [r["text"] for r in records if r["kind"] == "warning"] == [warning]
    points: dict[str, float] = {}
    for record in records:
        points |= record["values"] if record["kind"] == "metrics" else {}
    assert (points["expect/low"], points["expect/high"], points["expect/inside"]) == (0.99, 1.0, 0.0)
    assert {"val/ema_top1", "val/ema_loss", "summary/val_ema_top1"} <= points.keys()


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the tests' tiny network for seven classes, in torchvision's format."""
    from pipeline.model.resnet import ResNet, Spec

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "seven.pth"
    torch.save(ResNet(Spec((1, 1), (8, 16), first_kernel_size=3), 7).state_dict(), path)
    return path


def test_fine_tuning_keeps_what_is_frozen_and_makes_a_new_head(trainer: Any, tmp_path: Path, pretrained: Path) -> None:
    keys = ("train.epochs=4st", "schedule.warmup=0st", f"finetune.weights={pretrained}", "finetune.head=new")
    trainer.run(*keys, "finetune.freeze=[stem, layer1]", f"run.dir={tmp_path / 'run'}", world=2)
    before, after = torch.load(pretrained, weights_only=True), load_file(tmp_path / "run" / "model.safetensors")
    assert after["fc.weight"].shape == (10, 16)
    same = {name for name in before if before[name].shape == after[name].shape and before[name].equal(after[name])}
    frozen = {name for name in before if name.startswith(("conv1", "bn1", "layer1"))}
    assert same == frozen | {name for name in before if name.endswith("num_batches_tracked")} & same
    assert not any(name.startswith("layer2") and name.endswith("weight") for name in same)


def test_a_world_that_cannot_share_the_batch_is_told_once_before_data_is_opened(trainer: Any) -> None:
    output = trainer.run("batch.global=24", "batch.micro=24", "data.root=/nowhere", world=2, expect=1)
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "batch.global: 1 micro-batch (24 / 24) can't be shared by 2 processes" in error
