"""The learning rate as a pure function of the step.

Not here: setting it (`optim.set_lr`); a resumed run needs no state of a scheduler.
"""

import math
from collections.abc import Callable

from pipeline.config import Plan
from pipeline.config.schema import Schedule


def learning_rate(cfg: Schedule, plan: Plan) -> Callable[[int], float]:
    """Return the function from step (0 .. total_steps - 1) to learning rate.

    The warm-up rises linearly and reaches the peak at step `warmup_steps`; the cosine reaches
    `end_lr` where the step after the last would be.

    Source: Goyal et al. 2017, section 2.2 (warm-up, https://arxiv.org/abs/1706.02677);
    Loshchilov & Hutter 2017, equation 5 (cosine, https://arxiv.org/abs/1608.03983).
    """
    warmup, rest = plan.warmup_steps, plan.total_steps - plan.warmup_steps

    def lr(step: int) -> float:
        if step < warmup:
            return plan.peak_lr * (step + 1) / (warmup + 1)
        if cfg.name == "constant":
            return plan.peak_lr
        turn = math.cos(math.pi * (step - warmup) / rest)
        return cfg.end_lr + (plan.peak_lr - cfg.end_lr) * (1 + turn) / 2

    return lr
