from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import load, make_plan
from pipeline.errors import ConfigError
from pipeline.recipe.schedule import learning_rate


def lrs(total: int, warmup: int, *overrides: str) -> list[float]:
    cfg = load(
        None, [f"train.epochs={total}st", f"schedule.warmup={warmup}st", "optim.lr_per=null", "optim.lr=0.8", *overrides]
    )
    plan = make_plan(cfg, world_size=1, train_images=1000, val_images=1, classes=1)
    lr = learning_rate(cfg.schedule, plan)
    return [lr(step) for step in range(total)]


@pytest.mark.parametrize("end", [0.0, 0.01])
def test_cosine_equals_torchs_scheduler(end: float) -> None:
    param = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([param], lr=0.8)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=end)
    theirs = []
    for _ in range(50):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert lrs(50, 0, f"schedule.end_lr={end}") == pytest.approx(theirs, rel=1e-9, abs=1e-12)


@given(st.integers(2, 300), st.data())
def test_rises_to_the_peak_then_falls(total: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, total - 1))
    found = lrs(total, warmup)
    rise, fall = found[: warmup + 1], found[warmup:]
    assert rise == sorted(rise) and fall == sorted(fall, reverse=True)
    assert found[warmup] == pytest.approx(0.8) and min(found) > 0


def test_constant() -> None:
    assert lrs(6, 2, "schedule.name=constant") == pytest.approx([0.8 / 3, 1.6 / 3, 0.8, 0.8, 0.8, 0.8])


def test_a_training_that_is_all_warm_up() -> None:
    assert len(lrs(5, 5)) == 5


def timms(scheduler: Any, steps: int) -> list[float]:
    found = []
    for step in range(steps):
        scheduler.step_update(step)
        found.append(scheduler.optimizer.param_groups[0]["lr"])
    return found


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.8)


def test_warm_up_and_cosine_equal_timms() -> None:
    from timm.scheduler import CosineLRScheduler

    common = {"warmup_t": 7, "warmup_lr_init": 0.001, "warmup_prefix": True, "t_in_epochs": False}
    theirs = timms(CosineLRScheduler(sgd(), t_initial=43, lr_min=0.01, **common), 50)
    assert lrs(50, 7, "schedule.warmup_lr=0.001", "schedule.end_lr=0.01") == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_poly_equals_timms_and_torchs(power: float) -> None:
    from timm.scheduler import PolyLRScheduler

    theirs = timms(PolyLRScheduler(sgd(), t_initial=50, power=power, lr_min=0.01, t_in_epochs=False), 50)
    poly = ("schedule.name=poly", f"schedule.power={power}")
    assert lrs(50, 0, *poly, "schedule.end_lr=0.01") == pytest.approx(theirs, rel=1e-9)
    optimizer = sgd()
    theirs = torchs(optimizer, torch.optim.lr_scheduler.PolynomialLR(optimizer, 50, power), 50)
    assert lrs(50, 0, *poly) == pytest.approx(theirs, rel=1e-9)


def torchs(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_steps_equal_torchs_and_timms() -> None:
    from timm.scheduler import MultiStepLRScheduler

    optimizer = sgd()
    theirs = torchs(optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [10, 25, 40], 0.1), 50)
    found = lrs(50, 0, "schedule.name=step", "schedule.milestones=[10st, 50%, 40st]")
    assert found == pytest.approx(theirs, rel=1e-9)
    # timm's bisect_right(decay_t, t + 1) steps one update earlier than its name says.
    timm = timms(MultiStepLRScheduler(sgd(), [11, 26, 41], 0.1, t_in_epochs=False), 50)
    assert found == pytest.approx(timm, rel=1e-9)


def test_piecewise_linear_equals_torchs_and_numpys() -> None:
    points = "schedule.points=[[0st, 0.0001], [10st, 1], [100%, 0]]"
    found = lrs(50, 0, "schedule.name=linear", points)
    assert found == pytest.approx([0.8 * np.interp(step, [0, 10, 50], [0.0001, 1, 0]) for step in range(50)])
    optimizer, scheduling = sgd(), torch.optim.lr_scheduler
    rise = scheduling.LinearLR(optimizer, 0.0001, 1.0, 10)
    fall = scheduling.LinearLR(optimizer, 1.0, 0.0, 40)
    theirs = torchs(optimizer, scheduling.SequentialLR(optimizer, [rise, fall], [10]), 50)
    assert found == pytest.approx(theirs, rel=1e-6)


def test_points_that_fall_on_one_step_are_refused() -> None:
    with pytest.raises(ConfigError, match="schedule.points: come to steps 0, 1, 1"):
        lrs(10, 0, "schedule.name=linear", "schedule.points=[[0st, 0], [1st, 1], [10%, 0]]")
