"""What changes while a run trains, and how it is put into a checkpoint and taken out again."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from torch import Tensor, nn

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
Count = Annotated[int, Field(ge=0)]


def _whole_result(values: dict[str, float]) -> dict[str, float]:
    if values and not {"step", "loss", "top1", "top5", "count"} <= values.keys():
        raise ValueError("is no result of an evaluation")
    return values


Numbers = dict[str, int | FiniteFloat]
Result = Annotated[Numbers, AfterValidator(_whole_result)]


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)


class _SavedPlan(_Checked):
    train_images: Count
    val_images: Count
    classes: Count
    global_batch: Count
    micro_batch: Count
    world_size: Count


class Saved(_Checked):
    """What a checkpoint holds, as `State.capture` returns it."""

    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None = None
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    step: Count
    clock: Numbers
    window: Numbers
    val: Result
    best: Result
    plan: _SavedPlan
    config: str
    class_names: list[str]


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

    def restore(self, content: dict[str, Any], path: Path) -> None:
        """Take over what `capture` returned; `path` is where it comes from.

        Raises:
            CheckpointError: if it is not whole, or was made for another network, data set, batch or optimiser.
        """
        try:
            saved = Saved.model_validate(content)
            clock = self.clock.resumed(saved.clock, saved.plan.world_size)
            window = Sums(**saved.window)
        except (ValidationError, TypeError) as error:
            raise CheckpointError(f"{path}: {_said(error)}; use a checkpoint that this pipeline has written") from error
        self._check(saved, path)
        weights.load_into(self.model, saved.model, str(path))
        if self.ema is not None:  # a run that has averaged from now on only starts from the weights
            weights.load_into(self.ema.model, saved.ema or saved.model, str(path))
        self._restore_optimizer(saved, path)
        self.step, self.clock, self.window = saved.step, clock, window
        self.val, self.best = dict(saved.val), dict(saved.best)

    def _check(self, saved: Saved, path: Path) -> None:
        for key in SAME_IN_A_RUN:
            then, now = getattr(saved.plan, key), getattr(self.plan, key)
            if then != now:
                remedy = (
                    f"pass batch.global={then}" if key == "global_batch" else "use the same data and batch, or a new run.dir"
                )
                raise CheckpointError(f"{path}: the run was started with {key} {then}, now it is {now}; {remedy}")
        if saved.class_names != list(self.dataset.classes):
            names = sorted(set(saved.class_names) ^ set(self.dataset.classes))
            raise CheckpointError(
                f"{path}: the run was started with other classes (they differ in {', '.join(names[:3])}); use the same data"
            )
        if saved.step > self.plan.total_steps:
            raise CheckpointError(
                f"{path}: is at step {saved.step}, beyond the training's {self.plan.total_steps}; raise train.epochs"
            )

    def _restore_optimizer(self, saved: Saved, path: Path) -> None:
        """Take over what the optimiser and the scaler have gathered; their settings are those of the configuration of now."""
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        try:
            then, now = yaml.safe_load(saved.config)["optim"]["name"], self.cfg.optim.name
            if then != now:
                raise ValueError(f"{then}, now it is {now}")
            self.optimizer.load_state_dict(saved.optimizer)
            for param, gathered in self.optimizer.state.items():
                if bad := [k for k, v in gathered.items() if isinstance(v, Tensor) and v.ndim and v.shape != param.shape]:
                    raise ValueError(f"{bad[0]} has another shape than its weights")
            if saved.scaler and self.scaler.is_enabled():  # a run may go on in another precision
                self.scaler.load_state_dict(saved.scaler)
        except Exception as error:  # on what is no state of an optimiser, torch raises anything
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{path}: made for another optimiser ({reason}); use the same config or a new run.dir"
            ) from error
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)


def _said(error: ValidationError | TypeError) -> str:
    """Return what is wrong with a checkpoint's fields, and where."""
    if isinstance(error, TypeError):
        return "clock or window has other entries"
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
