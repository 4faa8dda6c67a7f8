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


def theirs(name: str, params: list[torch.Tensor], lr: float) -> torch.optim.Optimizer:
    """The libraries' optimisers, as a user would write them down."""
    import timm.optim

    return {
        "sgd": lambda: torch.optim.SGD(params, lr=lr, momentum=0.9, weight_decay=0.02, nesterov=True),
        "adamw": lambda: torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.95), eps=1e-7, weight_decay=0.02),
        "lamb": lambda: timm.optim.Lamb(params, lr=lr, betas=(0.9, 0.95), eps=1e-7, weight_decay=0.02, max_grad_norm=1.0),
        "lars": lambda: timm.optim.Lars(
            params, lr=lr, momentum=0.9, nesterov=True, trust_coeff=0.002, weight_decay=0.02, eps=1e-7
        ),
        "sgdw": lambda: timm.optim.SGDW(params, lr=lr, momentum=0.9, nesterov=True, weight_decay=0.02 / 0.3),
    }[name]()


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lars", "sgdw"])
def test_ten_steps_are_the_librarys(name: str) -> None:
    sgd, adaptive = ["momentum=0.9", "nesterov=true"], ["betas=[0.9, 0.95]", "eps=1e-7"]
    keys = adaptive if name in ("adamw", "lamb") else [*sgd, *(["eps=1e-7", "trust=0.002"] if name == "lars" else [])]
    keys = [*keys, "weight_decay=0.02"]
    cfg = load(None, [f"optim.{key}" for key in (f"name={name}", *keys, *(["clip_norm=1.0"] if name == "lamb" else []))]).optim
    torch.manual_seed(0)
    model = nn.Linear(5, 4, bias=False)
    other = model.weight.detach().clone().requires_grad_()
    ours, reference = optim.build(cfg, model, 0.3), theirs(name, [other], 0.3)
    for step in range(10):
        grad = torch.randn(4, 5) * (3 if step % 2 else 0.1)  # the larger ones are clipped
        model.weight.grad, other.grad = grad.clone(), grad.clone()
        for optimizer in (ours, reference):
            optim.set_lr(optimizer, 0.3 - 0.02 * step)
        optim.clip(cfg, ours)
        ours.step()
        reference.step()
        torch.testing.assert_close(model.weight, other, rtol=1e-5, atol=1e-7)


def test_sgdw_decays_by_the_rate_s_share_of_its_peak() -> None:
    cfg = load(None, ["optim.name=sgdw", "optim.weight_decay=0.1"]).optim
    model = nn.Linear(3, 2, bias=False)
    before = model.weight.detach().clone()
    optimizer = optim.build(cfg, model, 2.0)
    optim.set_lr(optimizer, 0.5)
    model.weight.grad = torch.zeros(2, 3)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), before * (1 - 0.1 * 0.5 / 2.0))


def test_the_norm_is_of_all_groups_together() -> None:
    cfg = load(None, ["optim.clip_norm=1.0"]).optim
    model = net()
    optimizer = optim.build(cfg, model, 0.1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optim.clip(cfg, optimizer)
    assert torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm() == pytest.approx(
        1.0, rel=1e-4
    )
