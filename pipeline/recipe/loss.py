"""The loss, built from the configuration.

Not here: what is counted beside it (`train.metrics`).
"""

from torch import nn

from pipeline.config.schema import Loss


def build(cfg: Loss) -> nn.Module:
    """Return the training loss: logits [batch, classes], labels int64 [batch] -> mean over the batch.

    Source: label smoothing, Szegedy et al. 2016, section 7 (https://arxiv.org/abs/1512.00567).
    """
    return nn.CrossEntropyLoss(label_smoothing=cfg.label_smoothing)
