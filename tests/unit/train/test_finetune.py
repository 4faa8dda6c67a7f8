"""Bad recipes are refused in one line before any process group or data is opened."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.config import load
from pipeline.errors import CheckpointError, ConfigError
from pipeline.model.resnet import ResNet, Spec
from pipeline.train import finetune, run
from pipeline.world import World

NETWORK = ("model.name=resnet", "model.n_blocks=[1, 1]", "model.n_channels=[8, 16]", "model.first_kernel_size=3")
CASES = {
    "loss.name=soft_cross_entropy loss.label_smoothing=0": "loss.name: soft_cross_entropy needs soft targets",
    "resize.start=8 resize.begin=20ep resize.end=10ep": r"resize.end: the ramp ends \(10ep\) before it begins \(20ep\)",
    "resize.start=8 resize.begin=50% resize.end=10ep": r"resize.end: the ramp ends \(10ep\) before it begins \(50%\)",
    "resize.start=8 resize.end=120%": "resize.end: 120% is after the end of the training",
    "resize.start=300": "resize.start: 300 pixels is above data.resolution",
    "resize.start=8 resize.begin=95ep resize.end=96ep": "resize.begin: 95ep is after the end of the training",
    "batch.global=24 batch.micro=24": "batch.global: 1 micro-batch .* can't be shared by 2 processes",
    "data.repeats=8 batch.global=4 batch.micro=2": "data.repeats: an image can't come 8 times in a step of 4 images",
    "data.repeats=5 batch.micro=2": "data.repeats: an image can't come 5 times in a step of 4 images",
    "augment.n=17": "augment.n: input should be less than or equal to 16",
    "optim.nesterov=true optim.momentum=0": "line: optim.nesterov: looks ahead along a momentum, which is 0",
    "optim.name=lmb": "optim.name: must be .* did you mean lamb?",
    "augment.policy=randaug": "augment.policy: .* did you mean randaugment?",
    "schedule.name=steps": "schedule.name: .* did you mean step?",
    "schedule.name=step": "line: schedule.milestones: needed for schedule.name=step; set them",
    "schedule.name=linear schedule.points=[[5ep,1],[2ep,0]]": "line: schedule.points: must come one after the other",
    "mix.mixup=0.2 batch.micro=1": "mix: a micro-batch of one image has nothing to mix with",
    "ema.decay=0.9 ema.half_life=3": "line: ema.half_life: contradicts ema.decay",
    "expect.top1={5: [0.5, 0.4]}": "the band ends .* below its start",
    "finetune.freeze=[stem]": "random weights would stay random",
    "finetune.weights={headless}": "has no fc.weight to keep; use finetune.head=new",
    "finetune.weights={whole} finetune.freeze=[stem,layer1,layer2,fc]": "finetune.freeze: leaves nothing to train",
    "finetune.weights={whole} model.n_channels=[8,24]": "made for another model: of another shape layer2.0.conv1.weight",
    "finetune.weights={whole} finetune.freeze=[layr1]": "finetune.freeze: .* did you mean layer1",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    state = ResNet(Spec((1, 1), (8, 16), first_kernel_size=3), 7).state_dict()
    torch.save(state, folder / "whole.pth")
    save_file({name: t for name, t in state.items() if not name.startswith("fc")}, folder / "headless.safetensors")
    return {"whole": folder / "whole.pth", "headless": folder / "headless.safetensors"}


@pytest.mark.parametrize("keys", CASES)
def test_bad_recipes_are_one_line_before_anything_is_opened(keys: str, files: dict[str, Path]) -> None:
    parts = keys.split(" ") if "[0.5" not in keys else [keys]
    overrides = [part.format(**files) if "{headless}" in part or "{whole}" in part else part for part in parts]
    with pytest.raises((ConfigError, CheckpointError), match=CASES[keys]) as caught:
        run.check(load(None, [*NETWORK, "data.root=/nowhere", *overrides]), World(size=2))
    assert len(str(caught.value).splitlines()) == 1 and ": :" not in str(caught.value)


def test_a_head_for_other_classes_is_refused_with_the_remedy(files: dict[str, Path]) -> None:
    cfg = load(None, [*NETWORK, f"finetune.weights={files['whole']}"])
    finetune.check(cfg)
    with pytest.raises(CheckpointError, match=r"made for 7 classes, and this model has 10; .*finetune.head=new"):
        finetune.start(cfg, ResNet(Spec((1, 1), (8, 16), first_kernel_size=3), 10))


def test_timms_weights_start_a_timm_network_with_another_head(tmp_path: Path) -> None:
    import timm

    theirs = timm.create_model("resnet18", num_classes=5)
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    keys = [f"finetune.weights={tmp_path / 'resnet18.pth'}", "finetune.head=new", "finetune.freeze=[layer1]"]
    cfg = load(None, ["model.name=timm/resnet18", *keys])
    finetune.check(cfg)
    model = timm.create_model("resnet18", num_classes=3)
    finetune.start(cfg, model)
    assert torch.equal(model.layer4[0].conv1.weight, theirs.layer4[0].conv1.weight) and model.fc.out_features == 3
    assert not model.layer1[0].conv1.weight.requires_grad and model.layer2[0].conv1.weight.requires_grad


@pytest.mark.parametrize("key", ["data.resolution=160", "resize.start=96", "eval.crop=192"])
def test_sizes_that_a_network_of_timm_cannot_take_are_refused(key: str) -> None:
    cfg = load(None, ["model.name=timm/vit_tiny_patch16_224", key])
    side = key.partition("=")[2]
    with pytest.raises(ConfigError, match=rf"timm/vit_tiny_patch16_224 can't take images of {side} pixels .*; set data.resol"):
        run.check(cfg, World())
    run.check(load(None, ["model.name=timm/vit_tiny_patch16_224"]), World())
