import pytest
import torch
from torch import nn

from pipeline.config import load
from pipeline.recipe import optim


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, bias=True), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_norm_and_bias_are_not_decayed_unless_asked() -> None:
    model = net()
    decayed, free = optim.groups(model, 0.1, False)
    assert [p.ndim for p in decayed["params"]] == [4, 2] and decayed["weight_decay"] == 0.1
    assert len(free["params"]) == 4 and free["weight_decay"] == 0.0
    (every,) = optim.groups(model, 0.1, True)
    assert len(every["params"]) == 6 and every["weight_decay"] == 0.1


def test_frozen_parameters_are_left_out() -> None:
    model = net()
    model[0].requires_grad_(False)  # type: ignore[no-untyped-call]
    assert sum(len(g["params"]) for g in optim.groups(model, 0.1, False)) == 4


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_step_is_sgds(nesterov: bool) -> None:
    """Two steps against the formula: v = m v + (g + wd w); w -= lr (v, or g + m v)."""
    cfg = load(None, [f"optim.nesterov={nesterov}", "optim.momentum=0.9", "optim.weight_decay=0.01"]).optim
    model = nn.Linear(3, 2, bias=False)
    w, v = model.weight.detach().clone().double(), torch.zeros(2, 3, dtype=torch.float64)
    optimizer = optim.build(cfg, model, 0.3)
    for lr in (0.3, 0.2):
        optim.set_lr(optimizer, lr)
        grad = torch.randn(2, 3)
        model.weight.grad = grad
        optimizer.step()
        g = grad.double() + 0.01 * w
        v = 0.9 * v + g
        w = w - lr * (g + 0.9 * v if nesterov else v)
    torch.testing.assert_close(model.weight.double(), w, rtol=1e-5, atol=1e-6)
