"""Every shipped recipe loads, builds, and trains two steps at a reduced size."""

import math
from contextlib import closing
from pathlib import Path

import pytest
import torch

from pipeline.config import Config, load, make_plan
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.loader import train_loader
from pipeline.data.resolution import resolution
from pipeline.model import zoo
from pipeline.recipe import optim, schedule
from pipeline.train import engine, run
from pipeline.world import World

RESNET50 = sorted(Path("configs/resnet50").glob("*.yaml"))
CIFAR10 = sorted(Path("configs/cifar10").glob("*.yaml"))
SMALL = [
    "data.resolution=16",
    "data.executor=reference",
    "data.threads=1",
    "eval.resize=18",
    "eval.crop=16",
    "model.name=resnet",
    "model.n_blocks=[1, 1]",
    "model.n_channels=[16, 32]",
    "model.first_kernel_size=3",
    "model.init=kaiming_fan_out",
    "batch.global=16",
    "batch.micro=8",
    "train.precision=fp32",
]


@pytest.fixture(scope="module")
def dataset(digits: Path) -> Dataset:
    return open_dataset(load(None, [f"data.root={digits}"]), World())


def test_every_row_of_the_published_recipes_is_there() -> None:
    ffcv = {f"ffcv_{n}ep" for n in (16, 24, 32, 40, 56, 88)}
    others = {"torchvision_v1", "torchvision_v2", "nvidia_90ep", "nvidia_250ep", "composer_mild", "mlperf_lars"}
    assert {path.stem for path in RESNET50} == ffcv | others | {"rsb_a1", "rsb_a2", "rsb_a3"}
    assert {path.stem for path in CIFAR10} == {f"resnet{n}" for n in (20, 32, 44, 56, 110)}


@pytest.mark.parametrize("path", RESNET50 + CIFAR10, ids=lambda p: p.stem)
def test_a_header_says_where_it_comes_from_and_how_to_run_it(path: Path) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("# Source: ", "# Expected: ", "Hardware there: ", f"pipeline train {path}"):
        assert any(word in line for line in head), word


@pytest.mark.parametrize("path", RESNET50 + CIFAR10, ids=lambda p: p.stem)
def test_it_is_built_at_its_full_size(path: Path) -> None:
    cfg = load(path)
    images, classes = (1_281_167, 1000) if path in RESNET50 else (50_000, 10)
    plan = make_plan(cfg, world_size=1, train_images=images, val_images=images, classes=classes)
    with torch.device("meta"):
        model = zoo.build(cfg.model, classes)
    found = optim.build(cfg.optim, model, plan.peak_lr)
    decayed = sum(p.numel() for group in found.param_groups for p in group["params"] if group["weight_decay"])
    assert decayed >= 0.99 * sum(p.numel() for p in model.parameters())
    lr = schedule.learning_rate(cfg.schedule, plan)
    rates = [lr(step) for step in range(0, plan.total_steps, max(1, plan.total_steps // 500))]
    assert max(rates) == pytest.approx(plan.peak_lr, rel=0.02) and rates[-1] <= 0.02 * plan.peak_lr
    side = resolution(cfg, plan)
    assert side(round(plan.total_steps / plan.steps_per_epoch)) == cfg.data.resolution
    assert set(cfg.expect.top1) <= set(range(1, round(plan.total_steps / plan.steps_per_epoch) + 1))
    assert cfg.expect.images == images and cfg.expect.top1


@pytest.mark.parametrize("path", RESNET50 + CIFAR10, ids=lambda p: p.stem)
def test_two_steps_change_what_they_should(path: Path, digits: Path, dataset: Dataset) -> None:
    cfg = small(path, digits)
    state = run.build(cfg, World(), dataset)
    before = [p.detach().clone() for p in state.model.parameters()]
    state.statistics.start_training()
    with closing(train_loader(cfg, state.plan, World(), dataset, 0)) as train:
        stream = iter(train)
        for _ in range(2):
            sums = engine.train_step(state, stream)
            assert math.isfinite(float(sums[0])) and sums[3] == 16
            state.step += 1
    moved = [not torch.equal(p, q) for p, q in zip(before, state.model.parameters(), strict=True)]
    # Behind a gamma that starts at zero, and with a warm-up from zero, some need a third step.
    assert moved[0] and moved[-1] and sum(moved) >= len(moved) / 2
    assert (state.ema is None) == (cfg.ema.keep is None)


@pytest.mark.parametrize("path", RESNET50 + CIFAR10, ids=lambda p: p.stem)
def test_the_documented_short_training_takes_it(path: Path) -> None:
    """Load each recipe with the keys that docs/recipes.md adds to it for a short training."""
    whole = load(path)
    more = {
        "step": "schedule.milestones=[50%,80%]",
        "linear": "schedule.warmup=0ep schedule.points=[[0%,0.01],[15%,1],[100%,0]]",
    }.get(whole.schedule.name, "")
    ramp = "resize.start=24 resize.begin=1ep resize.end=2ep resize.multiple=8" if whole.resize.start else ""
    text = Path("docs/recipes.md").read_text()
    assert more in text and ramp in text
    load(path, [*Path("configs/experiments/short.args").read_text().split(), *more.split(), *ramp.split()])


def small(path: Path, digits: Path) -> Config:
    whole = load(path)
    more = ["model.bottlenecks=[8, 8]"] if path in RESNET50 else []
    more += ["resize.start=8", "resize.multiple=4"] if whole.resize.start else []
    return load(path, [*SMALL, *more, f"data.root={digits}"])


# Sources: torchvision's ResNet (zero_init_residual is off), which ffcv-imagenet takes; timm's (zero_init_last
# is on); NVIDIA's image_classification/models (conv_init fan_in, last_bn_0_init is off); mosaicml/examples' model.py.
STARTS = {
    "torchvision": ("kaiming_fan_out", False),
    "rsb": ("kaiming_fan_out", True),
    "nvidia": ("kaiming_fan_in", False),
    "composer": ("kaiming_fan_in", False),
    "ffcv": ("kaiming_fan_out", False),
}


@pytest.mark.parametrize("path", [p for p in RESNET50 if p.stem.partition("_")[0] in STARTS], ids=lambda p: p.stem)
def test_networks_start_as_their_sources_do(path: Path) -> None:
    model = load(path).model
    assert (model.init, model.zero_init_gamma) == STARTS[path.stem.partition("_")[0]]
