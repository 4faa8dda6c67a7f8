"""The training loop: steps, checkpoints, evaluations, and leaving together."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, nullcontext
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.data.loader import Batch, Loader, eval_loader, train_loader
from pipeline.errors import Stopped, TrainingError
from pipeline.recipe import optim
from pipeline.recipe.mix import mix
from pipeline.retry import retry
from pipeline.train import finetune
from pipeline.train.checkpoint import Store
from pipeline.train.evaluate import evaluate, views
from pipeline.train.examine import Watch
from pipeline.train.metrics import Late, Sums, batch_sums, no_sums, score
from pipeline.train.preemption import StopFlag
from pipeline.train.report import warn_of_trouble
from pipeline.train.state import State
from pipeline.units import Duration


class Listener(Protocol):
    """Is told what happens; the calls come on every rank, in the same order."""

    def look(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Look at the training batches on their way; what is returned yields the same."""

    def on_step(self, state: State, step: int, sums: Sums) -> None:
        """The sums of the step that made `step` steps done, over all ranks."""

    def on_log(self, state: State, step: int, window: Sums) -> None:
        """The sums of all steps up to `step` since the last call, every `train.log_every` steps."""

    def on_eval(self, state: State) -> None:
        """A finished evaluation (`state.val`)."""


def fit(state: State, store: Store, flag: StopFlag, listener: Listener) -> None:
    """Train from `state.step` to the end of the plan.

    Raises:
        Stopped: on every rank, with the state saved, if any rank was asked to stop.
        TransientError: on every rank, if the state or the journal can't be written.
        TrainingError: on every rank, if the loss is no longer finite.
        DataError: on every rank, if more images can't be read than `data.max_bad_fraction` allows.
    """
    cfg, plan, world, late = state.cfg, state.plan, state.world, Late(state.world)
    if state.step < plan.total_steps and world.any_(flag.asked(0)):
        where = f"before step {state.step + 1} of {plan.total_steps}"
        raise Stopped(f"stopped {where} by {_who(flag)}; nothing had to be saved, {_how(store)}")
    state.network.train()
    finetune.hold(cfg, state.model)
    state.statistics.start_training()
    with (
        closing(eval_loader(cfg, world, state.dataset.val, state.dataset.bad_val)) as val,
        closing(train_loader(cfg, plan, world, state.dataset, state.step)) as train,
    ):
        settle = partial(_settle, state, store, flag, listener, val)
        if _evaluation_is_due(state):  # a checkpoint is saved before its evaluation
            settle(stop=False)
        stream = listener.look(iter(train))
        while state.step < plan.total_steps:
            sums = train_step(state, stream)
            state.step += 1
            with state.clock.measure("step_s"):  # on a GPU this is where the host waits for it
                arrived = late.push(state.step, sums, flag.asked(state.step), len(state.dataset.bad_train.news))
            stop = _read(state, arrived, flag, listener)
            if stop or _is_boundary(state):
                with state.clock.measure("step_s"):
                    arrived = late.pop()
                stop = _read(state, arrived, flag, listener) or stop
                settle(stop)
            if stop and state.step < plan.total_steps:
                where = f"after step {state.step} of {plan.total_steps}"
                raise Stopped(f"stopped {where} by {_who(flag)}; the state is saved, {_how(store)}")
    world.together(flag.check)
    state.statistics.end_training()


def train_step(state: State, stream: Iterator[Batch]) -> Tensor:
    """Do one optimiser step over this rank's micro-batches; return their sums, float64 [6] on the device."""
    plan, clock = state.plan, state.clock
    optim.set_lr(state.optimizer, state.lr(state.step))
    total = no_sums(state.world)
    for micro in range(plan.accumulation):
        with clock.measure("data_s"):
            batch = next(stream)
        with clock.measure("step_s"):
            total += _forward_backward(state, batch, micro)
    with clock.measure("step_s"):
        if state.cfg.optim.clip_norm is not None:
            state.scaler.unscale_(state.optimizer)
            optim.clip(state.cfg.optim, state.optimizer)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        state.statistics.after_step(state.world)
        if state.ema is not None:
            state.ema.update(state.step + 1, state.model, state.statistics.averages())
    clock.images += plan.global_batch
    return total


def _forward_backward(state: State, batch: Batch, micro: int) -> Tensor:
    """Add the gradients of one micro-batch; they are exchanged between ranks after the last one only."""
    _seed_layers(state, micro)
    last = micro == state.plan.accumulation - 1
    hold = not last and isinstance(state.network, DistributedDataParallel)
    device = state.world.device.type
    images, target = _mixed(state, batch)
    with state.network.no_sync() if hold else nullcontext():  # type: ignore[operator]
        with torch.autocast(device, dtype=state.autocast, enabled=state.autocast is not None):
            logits = state.network(images)
            loss = state.criterion(logits, target)
        torch.autograd.backward(state.scaler.scale(loss / state.plan.accumulation))
    state.statistics.after_pass()
    return batch_sums(logits, batch.labels, loss * len(batch.labels))


def _mixed(state: State, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return normalised images, and labels or, where the batch is to be mixed, shares of classes."""
    images, mixing = state.normalize(batch.images), batch.mixing
    if mixing is None:
        return images, batch.labels
    return mix(images, batch.labels, mixing.share, mixing.box, state.plan.classes)


def _seed_layers(state: State, micro: int) -> None:
    """Make what layers draw (dropout, stochastic depth) depend on the seed, the step and the micro-batch alone."""
    place = state.step * (state.plan.global_batch // state.plan.micro_batch) + micro * state.world.size + state.world.rank
    torch.manual_seed((state.cfg.seed << 32) ^ place)


def _is_boundary(state: State) -> bool:
    return state.step == state.plan.total_steps or _falls_on(state, state.cfg.eval.every) or _checkpoint_is_due(state)


def _evaluation_is_due(state: State) -> bool:
    step, last = state.step, state.plan.total_steps
    return 0 < step != state.val.get("step") and (step == last or _falls_on(state, state.cfg.eval.every))


def _checkpoint_is_due(state: State) -> bool:
    return _falls_on(state, state.cfg.train.checkpoint_every)


def _falls_on(state: State, interval: Duration) -> bool:
    return interval.falls_on(state.step, state.plan.steps_per_epoch, state.plan.total_steps)


def _who(flag: StopFlag) -> str:
    flag.obey()
    return flag.reason or "another rank"


def _how(store: Store) -> str:
    return f"go on with run.dir={store.folder.parent}"


def _read(state: State, arrived: tuple[int, Sums] | None, flag: StopFlag, listener: Listener) -> bool:
    """Take in a step's sums; return whether any rank wants to stop."""
    if arrived is None:
        return False
    step, sums = arrived
    if not math.isfinite(sums.loss):
        raise TrainingError(
            f"the loss is not finite at step {step}; lower optim.lr, lengthen schedule.warmup, or use train.precision=fp32"
        )
    if sums.bad:
        state.dataset.bad_train.share(state.world)
    state.window += sums
    _tell(flag, lambda: listener.on_step(state, step, sums))
    if step % state.plan.log_every == 0 or step == state.plan.total_steps:
        _tell(flag, lambda: listener.on_log(state, step, state.window))
        state.window = Sums(0, 0, 0, 0)
    return sums.stop > 0


def _tell(flag: StopFlag, tell: Callable[[], None]) -> None:
    """Call a listener; where it fails on one rank, all leave at the next boundary: they can't hear of it before."""
    try:
        tell()
    except Exception as error:
        flag.fail(error)


def _settle(state: State, store: Store, flag: StopFlag, listener: Listener, val: Loader, stop: bool) -> None:
    """At a boundary: save and evaluate as the plan says; on a stop: save, and leave the rest to the next start."""
    last = state.step == state.plan.total_steps
    evaluates = (last or not stop) and _evaluation_is_due(state)
    with state.statistics.settled():
        if stop or last or evaluates or _checkpoint_is_due(state):
            _on_main(state, flag, lambda: _save(state, store))
        if evaluates and _evaluate(state, flag, listener, val):
            _on_main(state, flag, lambda: store.keep_best(state.step, score(state.best)))


def _save(state: State, store: Store) -> None:
    if not store.path(state.step).exists():  # it does where training goes on at an evaluation
        store.save(state.capture(), state.step)


def _on_main(state: State, flag: StopFlag, write: Callable[[], None]) -> None:
    """Write on rank 0 while the others wait, however long it takes; leave together if that fails, or a listener has failed.

    After a failed listener nothing is saved: the steps since the last checkpoint are done again, and their points told again.
    """

    def work() -> None:
        flag.check()
        if state.world.is_main:
            retry(write, state.cfg.train.retry_s, say=warn_of_trouble)

    with state.clock.measure("save_s"):
        state.world.main_first(work)


def _evaluate(state: State, flag: StopFlag, listener: Listener, val: Loader) -> bool:
    """Evaluate, the averaged weights too; return whether the result is the best so far."""
    watch = Watch(views(state.model, state.cfg.eval))
    with state.clock.measure("eval_s"):
        found = _evaluate_model(state, watch, watch.over(val))
        state.examined = watch.result(state.world, state.plan.classes)
        if state.ema is not None:
            averaged = _evaluate_model(state, views(state.ema.model, state.cfg.eval), val)
            found |= {f"ema_{name}": averaged[name] for name in ("loss", "top1", "top5")}
    if not math.isfinite(found["loss"]):
        raise TrainingError(f"the validation loss is not finite at step {state.step}; lower optim.lr, lengthen schedule.warmup")
    state.val = {"step": state.step, **found}
    better = score(state.val) > score(state.best)
    if better:
        state.best = state.val
    _tell(flag, lambda: listener.on_eval(state))
    return better


def _evaluate_model(state: State, model: nn.Module, val: Iterable[Batch]) -> dict[str, float]:
    expected = partial(state.dataset.bad_val.good_images, state.world)
    return evaluate(model, val, state.normalize, world=state.world, expected=expected, autocast=state.autocast)
