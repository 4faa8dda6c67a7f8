"""What changes while a run trains, and how it is put into a checkpoint and taken out again.

Not here: files (`checkpoint`) and the loop (`engine`).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config import Config, Plan, to_yaml
from pipeline.data.loader import Dataset, Normalize
from pipeline.errors import CheckpointError
from pipeline.model import weights
from pipeline.recipe.ema import Average
from pipeline.recipe.loss import Criterion
from pipeline.train.batchnorm import StepStatistics
from pipeline.train.clock import Clock
from pipeline.train.examine import Examined
from pipeline.train.metrics import Sums
from pipeline.world import World

SAME_IN_A_RUN = ("train_images", "val_images", "classes", "global_batch", "micro_batch")


@dataclass
class State:
    """The run between two steps: `step` optimiser steps are done.

    `model` is the bare network, `network` the same under DistributedDataParallel. `window` holds the
    training sums since the last point of the curves, `val` the newest validation metrics with their
    step, `best` the best ones, `examined` what the newest evaluation of this process got wrong.
    """

    cfg: Config
    plan: Plan
    world: World
    dataset: Dataset
    model: nn.Module
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    criterion: Criterion
    normalize: Normalize
    statistics: StepStatistics
    lr: Callable[[int], float]
    autocast: torch.dtype | None
    ema: Average | None = None
    step: int = 0
    clock: Clock = field(default_factory=Clock)
    window: Sums = Sums(0, 0, 0, 0)
    val: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    examined: Examined | None = None

    def __post_init__(self) -> None:
        self.clock.devices = self.world.size

    @property
    def epoch(self) -> float:
        """Epochs done, with fractions."""
        return self.step / self.plan.steps_per_epoch

    def capture(self) -> dict[str, Any]:
        """Return everything that going on needs, as tensors and plain values; statistics must be settled."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "clock": asdict(self.clock),
            "window": asdict(self.window),
            "val": self.val,
            "best": self.best,
            "plan": self.plan.as_dict(),
            "config": to_yaml(self.cfg),
            "class_names": list(self.dataset.classes),
        } | ({"ema": self.ema.model.state_dict()} if self.ema is not None else {})

    def restore(self, saved: dict[str, Any], path: Path) -> None:
        """Take over what `capture` returned.

        Raises:
            CheckpointError: if it was made for another network, data set or batch.
        """
        for key in SAME_IN_A_RUN:
            then, now = saved["plan"][key], getattr(self.plan, key)
            if then != now:
                remedy = (
                    f"pass batch.global={then}" if key == "global_batch" else "use the same data and batch, or a new run.dir"
                )
                raise CheckpointError(f"{path}: the run was started with {key} {then}, now it is {now}; {remedy}")
        if saved["class_names"] != list(self.dataset.classes):
            names = sorted(set(saved["class_names"]) ^ set(self.dataset.classes))
            raise CheckpointError(
                f"{path}: the run was started with other classes (they differ in {', '.join(names[:3])}); use the same data"
            )
        if saved["step"] > self.plan.total_steps:
            raise CheckpointError(
                f"{path}: is at step {saved['step']}, beyond the training's {self.plan.total_steps}; raise train.epochs"
            )
        weights.load_into(self.model, saved["model"], str(path))
        if self.ema is not None:  # a run that has averaged from now on only starts from the weights
            weights.load_into(self.ema.model, saved.get("ema", saved["model"]), str(path))
        try:
            self.optimizer.load_state_dict(saved["optimizer"])
        except (ValueError, KeyError) as error:
            raise CheckpointError(
                f"{path}: made for another optimiser ({error}); use the same config or a new run.dir"
            ) from error
        if saved["scaler"] and self.scaler.is_enabled():  # a run may go on in another precision
            self.scaler.load_state_dict(saved["scaler"])
        self.step = saved["step"]
        self.clock, self.window = self.clock.resumed(saved["clock"], saved["plan"]["world_size"]), Sums(**saved["window"])
        self.val, self.best = saved["val"], saved["best"]
