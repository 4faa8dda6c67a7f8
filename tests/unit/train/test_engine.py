"""The loop's own time-keeping; what it computes is tested by whole runs."""

import errno
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.config import load
from pipeline.data.loader import open_dataset
from pipeline.errors import CheckpointError, Stopped, TransientError
from pipeline.train import checkpoint, engine, report
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
    assert [path.name for path in tmp_path.glob("*.pt")] == ["step-000000004.pt"]  # what was learned is not lost with it


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


def made(*overrides: str) -> State:
    cfg, world = load(None, [*TINY, *overrides]), World()
    return build(cfg, world, open_dataset(cfg, world))


def fit(state: State, folder: Path, listener: report.Silent | None = None, flag: StopFlag | None = None) -> None:
    engine.fit(state, Store(folder), flag or StopFlag(), listener or report.Silent())


def test_a_failed_evaluation_costs_no_training_and_is_caught_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> dict[str, float]:
        raise RuntimeError("a validation image is gone")

    calm, state = made(), made()
    fit(calm, tmp_path / "calm")
    with monkeypatch.context() as patch:
        patch.setattr(engine, "evaluate", broken)
        with pytest.raises(RuntimeError, match="is gone"):
            fit(state, tmp_path)
    again, newest = made(), Store(tmp_path).newest()
    assert newest is not None
    again.restore(checkpoint.load(newest), newest)
    assert again.step == 4 and not again.val
    fit(again, tmp_path)
    assert again.val == calm.val and again.best == calm.best
    assert Store(tmp_path).best.samefile(newest)


def test_a_full_disk_is_waited_for_then_ends_with_a_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries, write = 0, checkpoint._write
    state = made("train.checkpoint_every=2st", "eval.every=9st", "train.retry_s=0.3")

    def full(content: dict[str, object], path: Path) -> None:
        nonlocal tries
        write(content, path)
        if content["step"] == 4:
            tries += 1
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(TransientError, match="step-000000004.pt: can't write: No space left on device"):
        fit(state, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002.pt"] and tries > 1
    assert capsys.readouterr().out.count("trying again") == 1


def test_what_a_listener_cannot_write_ends_the_training_before_the_next_checkpoint(tmp_path: Path) -> None:
    """Its points would be missing: after the restart these steps are done and told again."""

    class Full(report.Silent):
        def on_log(self, state: State, step: int, window: object) -> None:
            if step > 2:
                raise TransientError("journal.jsonl: can't write the journal: No space left on device")

    state = made("train.checkpoint_every=2st", "train.log_every=1", "train.epochs=8st", "eval.every=99st")
    with pytest.raises(TransientError, match="can't write the journal"):
        fit(state, tmp_path, Full())
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002.pt"]


def test_a_stop_before_the_first_step_says_so(tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    with pytest.raises(Stopped, match=r"before step 1 of 4 by the file .*STOP; nothing had to be saved, go on with run.dir="):
        fit(made(), tmp_path / "checkpoints", flag=StopFlag(tmp_path))
    fit(made(), tmp_path / "checkpoints", flag=StopFlag(tmp_path))  # it was obeyed


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_the_optimisers_settings_are_those_of_the_present_configuration(tmp_path: Path, name: str) -> None:
    was = made(f"optim.name={name}", "train.epochs=2st")
    fit(was, tmp_path)
    newest = Store(tmp_path).newest()
    assert newest is not None
    own = ["optim.momentum=0.5"] if name == "sgd" else ["optim.betas=[0.5, 0.6]", "optim.eps=1e-3"]
    now = made(f"optim.name={name}", "optim.weight_decay=0.25", *own)
    fresh = [{k: v for k, v in group.items() if k != "params"} for group in now.optimizer.param_groups]
    now.restore(checkpoint.load(newest), newest)
    for group, settings in zip(now.optimizer.param_groups, fresh, strict=True):
        assert {key: group[key] for key in settings} == settings
    assert now.optimizer.param_groups[0]["weight_decay"] == 0.25
    assert len(now.optimizer.state) == len(was.optimizer.state) > 0
    with pytest.raises(CheckpointError, match=f"another optimiser .{name}, now it is lars"):
        made("optim.name=lars").restore(checkpoint.load(newest), newest)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", "3"),
        ("step", -1),
        ("model", [1]),
        ("optimizer", {"state": 3}),
        ("optimizer", {"state": {0: {"momentum_buffer": torch.zeros(7)}}}),
        ("clock", {"step_s": "long"}),
        ("clock", {"else": 1.0}),
        ("window", 3),
        ("val", {"top1": 0.5}),
        ("best", {"step": 1, "loss": float("nan"), "top1": 1.0, "top5": 1.0, "count": 1}),
        ("plan", {"classes": 3}),
        ("config", "[]"),
        ("class_names", 3),
        ("ema", {"w": 1}),
    ],
)
def test_wrong_fields_of_a_checkpoint_are_named(tmp_path: Path, field: str, value: object) -> None:
    state = made()
    content = {"format": 1, **state.capture()}
    groups = content["optimizer"]["param_groups"]
    if field == "optimizer" and isinstance(value, dict) and value["state"] != 3:
        value = {**value, "param_groups": groups}
    with pytest.raises(CheckpointError) as caught:
        state.restore(content | {field: value}, tmp_path / "forged.pt")
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'forged.pt'}: ") and "\n" not in text
    assert field in text or "another optimiser" in text or "clock or window" in text
