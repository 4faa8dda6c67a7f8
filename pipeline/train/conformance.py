"""Whether a run does as well as its recipe is known to do."""

from dataclasses import dataclass

from pipeline.config import Config, Plan


@dataclass(frozen=True)
class Band:
    """The top-1 that is expected after an epoch, and the one that was found; fractions."""

    epoch: int
    low: float
    high: float
    found: float

    @property
    def inside(self) -> bool:
        """Whether the run does as expected."""
        return self.low <= self.found <= self.high

    def __str__(self) -> str:
        low, high = (f"{100 * edge:.4g}" for edge in (self.low, self.high))
        return f"epoch {self.epoch}: {self.found:.1%} top-1, expected {low}-{high} %"


def band(cfg: Config, plan: Plan, step: int, top1: float) -> Band | None:
    """Return what is expected after `step` steps beside the `top1` found; None where nothing is, or of other data."""
    epoch, rest = divmod(step, plan.steps_per_epoch)
    edges = cfg.expect.top1.get(epoch)
    if rest or edges is None or not _is_meant(cfg, plan):
        return None
    return Band(epoch, *edges, top1)


def never_compared(cfg: Config, plan: Plan) -> list[int]:
    """Return the epochs of the training for which something is expected, but after which nothing is evaluated."""
    ends = {epoch: epoch * plan.steps_per_epoch for epoch in sorted(cfg.expect.top1)}
    within = {epoch: step for epoch, step in ends.items() if step < plan.total_steps and _is_meant(cfg, plan)}
    every = cfg.eval.every
    return [epoch for epoch, step in within.items() if not every.falls_on(step, plan.steps_per_epoch, plan.total_steps)]


def _is_meant(cfg: Config, plan: Plan) -> bool:
    return cfg.expect.images in (None, plan.train_images)
