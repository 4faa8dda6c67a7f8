from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipeline.__main__ import cli
from pipeline.config import load
from pipeline.errors import ConfigError, UsageError, WorldError
from pipeline.model import zoo
from pipeline.train.forecast import Question, draw, forecast, memory, render


def test_a_published_recipe_on_eight_gpus(tmp_path: Path) -> None:
    cfg = load("configs/resnet50/ffcv_16ep.yaml")
    found = forecast(cfg, Question(world=8, images_per_s=20_000))
    assert found.plan.total_steps == 16 * (1_281_167 // 4096) and found.images_seen == found.plan.total_steps * 4096
    assert found.resolution == [(0, 160), (12, 192)]
    assert found.hours == pytest.approx(found.images_seen / 20_000 / 3600) and found.gpu_hours == pytest.approx(8 * found.hours)
    assert max(rate for _, rate in found.lr) == pytest.approx(1.7, rel=0.003)
    text = render(found, cfg)
    assert "160 px from epoch 0, 192 px from epoch 12" in text and "4096 images each = 8 x 1 x 512" in text and "█" in text
    draw(found, tmp_path / "plan.png")
    with Image.open(tmp_path / "plan.png") as image:
        assert image.width >= 800


def test_memory_counts_what_the_layers_return() -> None:
    keys = ["model.name=cifar_resnet20", "batch.micro=4", "data.resolution=32", "train.precision=fp32"]
    cfg = load(None, [*keys, "optim.name=lamb", "ema.decay=0.9"])
    model = zoo.build(cfg.model, 10)
    seen = []
    for layer in (m for m in model.modules() if not list(m.children())):
        layer.register_forward_hook(lambda m, i, o: seen.append(o.numel()))
    model(torch.randn(4, 3, 32, 32))
    with torch.device("meta"):
        found = memory(cfg, zoo.build(cfg.model, 10))
    parameters = 4 * sum(p.numel() for p in model.parameters())
    assert found["activations"] == 4 * sum(seen)
    assert found["weights"] == found["gradients"] == found["average"] == parameters and found["optimizer"] == 2 * parameters


def test_a_world_that_cannot_share_the_batch_is_refused() -> None:
    with pytest.raises(WorldError, match="can't be shared by 64 processes"):
        forecast(load("configs/resnet50/ffcv_16ep.yaml"), Question(world=64))


def test_what_cannot_be_forecast_is_refused() -> None:
    with pytest.raises(UsageError, match="--img-s: must be a number of images a second, not nan"):
        forecast(load("configs/resnet50/ffcv_16ep.yaml"), Question(images_per_s=float("nan")))
    with pytest.raises(ConfigError, match="can't take images of 160 pixels"):
        forecast(load(None, ["model.name=timm/vit_tiny_patch16_224", "data.resolution=160"]), Question())


def test_the_papers_network_has_the_papers_parameters() -> None:
    """0.27 million, section 4.2 and table 6 of the paper: with the classes of CIFAR-10."""
    found = CliRunner().invoke(cli, ["config", "plan", "configs/cifar10/resnet20.yaml"])
    assert found.exit_code == 0 and "0.27 M" in found.output
