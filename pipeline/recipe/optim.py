"""The optimiser, built from the configuration, with weight decay where it belongs.

Not here: the learning rate over time (`schedule`).
"""

from typing import Any

import torch
from torch import nn

from pipeline.config.schema import Optim


def build(cfg: Optim, model: nn.Module, peak_lr: float) -> torch.optim.Optimizer:
    """Return the optimiser over the trainable parameters of `model`."""
    return torch.optim.SGD(
        groups(model, cfg.weight_decay, cfg.decay_norm_and_bias),
        lr=peak_lr,
        momentum=cfg.momentum,
        nesterov=cfg.nesterov,
        fused=next(model.parameters()).is_cuda,
    )


def groups(model: nn.Module, weight_decay: float, decay_norm_and_bias: bool) -> list[dict[str, Any]]:
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
