"""The loss, built from the configuration."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config.sections import Loss

Criterion = Callable[[Tensor, Tensor], Tensor]


def build(cfg: Loss) -> Criterion:
    """Return the training loss: logits [batch, classes] and targets -> mean over the batch.

    Targets are labels, int64 [batch], or shares of classes, float [batch, classes]; both are smoothed.

    Source: label smoothing, Szegedy et al. 2016, section 7 (https://arxiv.org/abs/1512.00567);
    binary cross-entropy, Wightman et al. 2021, section 2 (https://arxiv.org/abs/2110.00476).
    """
    if cfg.name == "binary_cross_entropy":
        return lambda logits, target: _binary(cfg, logits, target)
    return lambda logits, target: F.cross_entropy(logits, target, label_smoothing=cfg.label_smoothing)


def _binary(cfg: Loss, logits: Tensor, target: Tensor) -> Tensor:
    classes = logits.shape[1]
    shares = target if target.ndim == 2 else F.one_hot(target, classes)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    shares = shares.to(logits.dtype) * (1 - cfg.label_smoothing) + cfg.label_smoothing / classes
    if cfg.threshold is not None:
        shares = (shares > cfg.threshold).to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, shares)
    return loss * classes if cfg.sum_classes else loss
