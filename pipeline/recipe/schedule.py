"""The learning rate as a pure function of the step."""

import math
from bisect import bisect_right
from collections.abc import Callable

import numpy as np

from pipeline.config import Plan
from pipeline.config.sections import Schedule
from pipeline.errors import ConfigError
from pipeline.units import Duration

Rate = Callable[[int], float]


def learning_rate(cfg: Schedule, plan: Plan) -> Rate:
    """Return the function from step (0 .. total_steps - 1) to learning rate.

    The warm-up rises linearly and reaches the peak at step `warmup_steps`; cosine and poly reach
    `end_lr` where the step after the last would be. Milestones and points count from step 0.

    Raises:
        ConfigError: if the points of a piecewise-linear schedule are out of order.

    Source: Goyal et al. 2017, section 2.2 (warm-up, https://arxiv.org/abs/1706.02677);
    Loshchilov & Hutter 2017, equation 5 (cosine, https://arxiv.org/abs/1608.03983).
    """
    if cfg.name == "linear":
        return _linear(cfg, plan)
    warmup, after = plan.warmup_steps, _after_warmup(cfg, plan)

    def lr(step: int) -> float:
        if step >= warmup:
            return after(step)
        if cfg.warmup_lr is None:
            return plan.peak_lr * (step + 1) / (warmup + 1)
        return cfg.warmup_lr + (plan.peak_lr - cfg.warmup_lr) * step / warmup

    return lr


def _after_warmup(cfg: Schedule, plan: Plan) -> Rate:
    """Return the rate from the warm-up's end on."""
    peak, warmup = plan.peak_lr, plan.warmup_steps
    rest, fall = plan.total_steps - warmup, plan.peak_lr - cfg.end_lr
    milestones = sorted(_steps(place, plan) for place in cfg.milestones)
    shapes: dict[str, Rate] = {
        "constant": lambda step: peak,
        "step": lambda step: peak * cfg.gamma ** bisect_right(milestones, step),
        "cosine": lambda step: cfg.end_lr + fall * (1 + math.cos(math.pi * (step - warmup) / rest)) / 2,
        "poly": lambda step: cfg.end_lr + fall * (1 - (step - warmup) / rest) ** cfg.power,
    }
    return shapes[cfg.name]


def _linear(cfg: Schedule, plan: Plan) -> Rate:
    places = [_steps(place, plan) for place, _ in cfg.points]
    shares = [share for _, share in cfg.points]
    if places != sorted(set(places)):
        raise ConfigError(
            f"schedule.points: come to steps {', '.join(map(str, places))} in this training, which do not rise; "
            "move them apart, or lengthen train.epochs"
        )
    return lambda step: plan.peak_lr * float(np.interp(step, places, shares))


def _steps(place: Duration, plan: Plan) -> int:
    return place.steps(plan.steps_per_epoch, plan.total_steps)
