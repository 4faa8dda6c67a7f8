"""The loop's own time-keeping; what it computes is tested by whole runs."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.config import load
from pipeline.data.loader import open_dataset
from pipeline.train import engine, report
from pipeline.train.checkpoint import Store
from pipeline.train.preemption import StopFlag
from pipeline.train.run import build
from pipeline.train.state import State
from pipeline.world import World

TINY = [
    "data.executor=synthetic",
    "data.synthetic_train=64",
    "data.synthetic_val=10",
    "data.synthetic_classes=3",
    "data.resolution=16",
    "eval.resize=16",
    "eval.crop=16",
    "model.name=cifar_resnet20",
    "batch.micro=8",
    "train.epochs=4st",
    "schedule.warmup=0st",
]


class SlowDevice(World):
    """A world in which reading a sum waits, as the host waits for a GPU."""

    def sum_later(self, tensor: Tensor) -> Callable[[], Tensor]:
        def summed() -> Tensor:
            time.sleep(0.2)
            return tensor

        return summed


def test_waiting_for_the_device_is_time_in_training(tmp_path: Path) -> None:
    cfg, world = load(None, TINY), SlowDevice()
    state = build(cfg, world, open_dataset(cfg, world))
    with StopFlag(tmp_path) as flag:
        engine.fit(state, Store(tmp_path), flag, report.Silent())
    assert state.step == 4 and state.clock.images == 32
    assert state.clock.step_s >= 4 * 0.2
    assert torch.tensor(state.val["count"]) == 10


def test_a_loss_that_is_not_finite_in_evaluation_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.errors import TrainingError

    cfg, world = load(None, TINY), World()
    state = build(cfg, world, open_dataset(cfg, world))
    monkeypatch.setattr(engine, "evaluate", lambda *_, **__: {"loss": float("nan"), "top1": 0.1, "top5": 1.0, "count": 10})
    with StopFlag(tmp_path) as flag, pytest.raises(TrainingError, match="validation loss is not finite at step 4"):
        engine.fit(state, Store(tmp_path), flag, report.Silent())
    assert not list(tmp_path.glob("*.pt"))


def test_evaluations_within_epochs_meet_the_epochs_ends(tmp_path: Path) -> None:
    """Seven steps an epoch: half of them, rounded, would be 4, 8 and 12, and no band of `expect.top1` would be looked at."""
    cfg, world = load(None, [*TINY, "data.synthetic_train=56", "train.epochs=2", "eval.every=0.5ep"]), World()
    state = build(cfg, world, open_dataset(cfg, world))
    evaluated: list[int] = []

    class Told(report.Silent):
        def on_eval(self, state: State) -> None:
            evaluated.append(state.step)

    with StopFlag(tmp_path) as flag:
        engine.fit(state, Store(tmp_path), flag, Told())
    assert evaluated == [4, 7, 11, 14]
