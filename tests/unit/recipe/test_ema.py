import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.config import load, make_plan
from pipeline.recipe import ema


def build(model: nn.Module, *keys: str) -> ema.Average:
    cfg = load(None, ["train.epochs=100st", "schedule.warmup=0st", *(f"ema.{key}" for key in keys)])
    plan = make_plan(cfg, world_size=1, train_images=1000, val_images=1, classes=1)
    found = ema.build(cfg.ema, plan, model, ["1.running_mean", "1.running_var"])
    assert found is not None
    return found


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))


def shake(model: nn.Module) -> list[torch.Tensor]:
    """Change the parameters; return running averages that are not in the layers."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    return [torch.randn(8), torch.rand(8)]


def test_every_step_it_is_torchs() -> None:
    model = net()
    ours = build(model, "decay=0.9")
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    theirs.update_parameters(model)  # the first call copies
    mean = model.get_buffer("1.running_mean").clone()
    for step in range(1, 8):
        averages = shake(model)
        mean = 0.9 * mean + 0.1 * averages[0]
        ours.update(step, model, averages)
        theirs.update_parameters(model)
    for p, q in zip(ours.model.parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    torch.testing.assert_close(ours.model.get_buffer("1.running_mean"), mean)


def test_half_life_and_interval() -> None:
    model = net()
    start = model.get_parameter("0.weight").detach().clone()
    ours = build(model, "half_life=20", "every=5")
    averages = shake(model)
    for step in range(1, 21):
        ours.update(step, model, averages)
    half = (start + model.get_parameter("0.weight")) / 2
    torch.testing.assert_close(ours.model.get_parameter("0.weight"), half)


def test_a_warm_up_follows_the_weights() -> None:
    model = net()
    ours = build(model, "decay=0.99", "warmup=3st", "every=2")
    for step in range(1, 4):
        ours.update(step, model, shake(model))
        assert torch.equal(ours.model.get_parameter("0.weight"), model.get_parameter("0.weight"))
    ours.update(4, model, shake(model))
    assert not torch.equal(ours.model.get_parameter("0.weight"), model.get_parameter("0.weight"))


def test_none_unless_asked() -> None:
    cfg = load(None, ["train.epochs=100st", "schedule.warmup=0st"])
    plan = make_plan(cfg, world_size=1, train_images=1000, val_images=1, classes=1)
    assert ema.build(cfg.ema, plan, net(), []) is None
    assert load(None, ["ema.half_life=100", "ema.every=20"]).ema.keep == pytest.approx(0.5**0.2)
