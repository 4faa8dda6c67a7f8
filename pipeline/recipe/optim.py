"""The optimiser, built from the configuration, with weight decay where it belongs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.config.sections import Optim

Groups = list[dict[str, Any]]


def build(cfg: Optim, model: nn.Module, peak_lr: float) -> torch.optim.Optimizer:
    """Return the optimiser over the trainable parameters of `model`."""
    # timm's SGDW takes off lr * decay; stated as a share at the peak rate, that is lr / peak * weight_decay.
    decay = cfg.weight_decay / peak_lr if cfg.name == "sgdw" else cfg.weight_decay
    params = groups(model, decay, cfg.decay_norm_and_bias)
    fused = next(model.parameters()).is_cuda
    momentum = {"momentum": cfg.momentum, "nesterov": cfg.nesterov}
    adaptive = {"betas": cfg.betas} | ({"eps": cfg.eps} if cfg.eps else {})
    if cfg.name == "sgd":
        return torch.optim.SGD(params, lr=peak_lr, fused=fused, **momentum)  # type: ignore[arg-type]
    if cfg.name == "adamw":
        return torch.optim.AdamW(params, lr=peak_lr, fused=fused, **adaptive)  # type: ignore[arg-type]
    return _timm(cfg, params, peak_lr, momentum, adaptive)


def _timm(cfg: Optim, params: Groups, lr: float, momentum: dict[str, Any], adaptive: dict[str, Any]) -> torch.optim.Optimizer:
    """Return one of timm's optimisers; the gradient is clipped by the engine, so LAMB need not do it."""
    from timm import optim  # takes two seconds, which only those who use it should spend

    eps = {"eps": cfg.eps} if cfg.eps else {}
    makers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "lamb": lambda: optim.Lamb(params, lr=lr, max_grad_norm=None, **adaptive),
        "lars": lambda: optim.Lars(params, lr=lr, trust_coeff=cfg.trust, **momentum, **eps),
        "sgdw": lambda: optim.SGDW(params, lr=lr, **momentum),
    }
    return makers[cfg.name]()


def groups(model: nn.Module, weight_decay: float, decay_norm_and_bias: bool) -> Groups:
    """Split the parameters into one group with weight decay and one without.

    One-dimensional parameters are those of normalisation layers and the biases; decaying them
    does not regularise but shrinks the scale of features.

    Source: Goyal et al. 2017, section 5.3 (https://arxiv.org/abs/1706.02677); He et al. 2019,
    section 3.1, "no bias decay" (https://arxiv.org/abs/1812.01187).
    """
    params = [p for p in model.parameters() if p.requires_grad]
    if decay_norm_and_bias:
        return [{"params": params, "weight_decay": weight_decay}]
    return [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip(cfg: Optim, optimizer: torch.optim.Optimizer) -> None:
    """Scale the whole gradient down to `optim.clip_norm`, if it is larger."""
    if cfg.clip_norm is not None:
        every = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(every, cfg.clip_norm)
