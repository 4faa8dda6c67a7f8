import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import load, make_plan
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
