"""The composition of a run: world, data, network, optimiser, directory, record, loop."""

import contextlib
import copy
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from pipeline.config import Config, Plan, check_world, make_plan, to_yaml
from pipeline.data.loader import BAD_IMAGES, Dataset, Normalize, open_dataset
from pipeline.errors import CheckpointError, Stopped
from pipeline.model import weights, zoo
from pipeline.recipe import ema, loss, optim, schedule
from pipeline.retry import retry
from pipeline.track.lock import RunLock
from pipeline.track.runs import read_run
from pipeline.track.uri import refuse_network_disk, tracking_uri
from pipeline.train import checkpoint, engine, failure, finetune, report, rundir
from pipeline.train.batchnorm import StepStatistics
from pipeline.train.machines import Machines
from pipeline.train.metrics import score
from pipeline.train.precision import autocast_type, place
from pipeline.train.preemption import StopFlag
from pipeline.train.record import Record
from pipeline.train.rundir import RunDir
from pipeline.train.state import State
from pipeline.world import World, from_env, join


def train(cfg: Config) -> None:
    """Train as the configuration says, in the world that the environment describes, to the end.

    Raises:
        PipelineError: on every rank; its message is empty on those that need not print it.
    """
    with StopFlag() as flag, contextlib.ExitStack() as held:
        world = replace(from_env(), asked=flag.signalled)
        check(cfg, world)
        tracking_uri(cfg.track, cfg.run.root)
        if world.is_main:
            failure.begin(cfg.run.dir)
        world = held.enter_context(join(world, backend=cfg.dist.backend, timeout_s=cfg.dist.timeout_s))
        dataset = open_dataset(cfg, world)
        world.leave_if_asked()
        world = replace(world, asked=None)  # from here on `fit` acts on the flag
        state = world.together(lambda: build(cfg, world, dataset))
        run = _open_run(state, held)
        world.together(lambda: dataset.remember_bad(run.path / BAD_IMAGES, world))
        _resume(state, run)
        if _is_finished(state, run):
            return
        _rewind(state, run)
        state.network = world.wrap(state.model)
        flag.watch(run.path, cfg.train.max_time)
        _train(state, run, flag)


def plan(cfg: Config, world_size: int) -> Plan:
    """Return what `train` would do in a world of `world_size` processes; nothing but the data's index is read or made.

    Raises:
        PipelineError: if configuration, data and world do not fit together.
    """
    zoo.check(cfg.model)
    return _plan(cfg, World(size=world_size), open_dataset(cfg, World()))


def _plan(cfg: Config, world: World, dataset: Dataset) -> Plan:
    return make_plan(
        cfg,
        world_size=world.size,
        train_images=len(dataset.train),
        val_images=len(dataset.val),
        classes=len(dataset.classes),
    )


def check(cfg: Config, world: World) -> None:
    """Refuse what can't work whatever the data is, before any process group or data is opened.

    Raises:
        PipelineError: naming the key.
    """
    zoo.check(cfg.model)
    zoo.check_sides(cfg)
    check_world(cfg, world.size)
    finetune.check(cfg)


def build(cfg: Config, world: World, dataset: Dataset) -> State:
    """Build everything that is trained, at step 0, before any other rank or directory is touched.

    Raises:
        PipelineError: if configuration, data and world do not fit together.
    """
    plan = _plan(cfg, world, dataset)
    torch.manual_seed(cfg.seed)
    if cfg.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic with a fixed workspace only
    torch.use_deterministic_algorithms(cfg.train.deterministic)
    torch.backends.cudnn.benchmark = not cfg.train.deterministic
    model = zoo.build(cfg.model, plan.classes)
    finetune.start(cfg, model)
    model = place(model, cfg.train, world.device)
    finetune.hold(cfg, model)
    statistics = StepStatistics(model)
    averaged = ema.build(cfg.ema, plan, model, statistics.names)
    autocast = autocast_type(cfg.train, world.device)
    if cfg.train.compile:
        model.compile()
    return State(
        cfg=cfg,
        plan=plan,
        world=world,
        dataset=dataset,
        model=model,
        network=model,
        optimizer=optim.build(cfg.optim, model, plan.peak_lr),
        scaler=torch.amp.GradScaler(world.device.type, enabled=autocast is torch.float16),
        criterion=loss.build(cfg.loss),
        normalize=Normalize(cfg.data.mean, cfg.data.std, world.device, next(model.parameters()).dtype),
        statistics=statistics,
        lr=schedule.learning_rate(cfg.schedule, plan),
        autocast=autocast,
        ema=averaged,
    )


def _open_run(state: State, held: contextlib.ExitStack) -> RunDir:
    """Let rank 0 find or make the run directory and lock it; return it on every rank."""
    world = state.world

    def prepare() -> RunDir | None:
        if not world.is_main:
            return None
        if state.cfg.track.enabled:
            refuse_network_disk(tracking_uri(state.cfg.track, state.cfg.run.root))
        path = rundir.choose(state.cfg)
        # The other ranks wait in a collective meanwhile, whose time must not run out.
        held.enter_context(RunLock(path, min(state.cfg.train.retry_s, state.cfg.dist.timeout_s / 2)))
        failure.refuse_repetition(path)
        rundir.tidy(path)
        return rundir.prepare(state.cfg, path)

    run = world.together(prepare)
    told = world.from_main([str(run.path), run.uid, run.name, run.fresh] if run else None)
    return RunDir(Path(told[0]), *told[1:])


def _resume(state: State, run: RunDir) -> None:
    """Take over the newest checkpoint that is whole, the same one on every rank."""
    world, store = state.world, checkpoint.Store(run.checkpoints)
    wait_s = min(state.cfg.train.retry_s, state.cfg.dist.timeout_s / 2)  # the other ranks wait meanwhile

    def newest() -> str | None:
        path = retry(lambda: store.newest_whole(report.say), wait_s, say=report.warn_of_trouble) if world.is_main else None
        return path.name if path else None

    name = world.from_main(world.main_first(newest))
    if name is None:
        return
    path = run.checkpoints / name
    world.together(lambda: state.restore(retry(lambda: checkpoint.load(path), wait_s), path))


def _rewind(state: State, run: RunDir) -> None:
    """Let the best checkpoint be the one that belongs to the state, on whose evaluation the training goes on."""
    world, store = state.world, checkpoint.Store(run.checkpoints)
    best_step = int(state.best["step"]) if state.best else None

    def there() -> bool:
        return not world.is_main or state.step == 0 or store.rewind(state.step, best_step) or _holds(store.best, best_step)

    if world.from_main(world.together(there)):
        return
    if world.is_main:
        report.say(f"warning: {store.best}: the weights of step {best_step}, the best so far, are gone; the best is found anew")
        store.best.unlink(missing_ok=True)
    state.val, state.best = {}, {}  # so that an evaluation that is due is made again


def _holds(best: Path, step: int | None) -> bool:
    """Return whether a best checkpoint without its step in its name, as earlier versions wrote it, is that of a step."""
    try:
        return bool(checkpoint.load(best)["step"] == step)
    except CheckpointError:
        return False


def _train(state: State, run: RunDir, flag: StopFlag) -> None:
    try:
        _fit(state, run, flag)
    except Stopped:
        # Saving and closing the record take rank 0 a while, and a launcher ends all when it sees one go.
        state.world.barrier()
        raise


def _fit(state: State, run: RunDir, flag: StopFlag) -> None:
    cfg, world, store = state.cfg, state.world, checkpoint.Store(run.checkpoints, state.cfg.train.keep_checkpoints)
    with Machines(world, cfg.track.system_every_s) as machines:
        record = world.together(lambda: Record(state, run, flag, machines, sys.argv) if world.is_main else None)
        with contextlib.ExitStack() as held:
            if record is not None:
                report.say(report.opening(state, run.path))
            world.together(lambda: held.enter_context(record) if record else None)
            listener = report.Silent(machines) if record is None else record.reporter
            # In here, so that the record names what failed, and who was lost.
            with failure.judged(run.path, lambda: state.step, world.rank, world.size, cfg.batch), world.watched():
                engine.fit(state, store, flag, listener)
            kept = held.pop_all()
        # The others wait for rank 0: where they have gone already, it could not come back if it died over this.
        world.main_first(lambda: _finish(state, run, record, kept) if record else None)
        if record is not None:
            report.say(report.table(report.summary(state), run.path, record.whereabouts()))


def _finish(state: State, run: RunDir, record: Record, kept: contextlib.ExitStack) -> None:
    """Write the final weights and the figures that runs are compared by, and close the record with them."""
    with kept:
        _write(state, run, record)


def _write(state: State, run: RunDir, record: Record) -> None:
    about = {"config": to_yaml(state.cfg), "class_names": json.dumps(state.dataset.classes), "run_uid": run.uid}
    _save_weights(state, state.model, run.weights, about)
    record.artifact(run.weights, "weights")
    if state.ema is not None:
        _save_weights(state, state.ema.model, run.averaged_weights, about)
        record.artifact(run.averaged_weights, "weights")
    _keep_best(state, run, about)
    if run.best_weights.is_file():
        record.artifact(run.best_weights, "weights")
    record.keep_pictures()
    record.keep_model()
    found = report.summary(state) | {"tracking_wait": record.journal.seconds / max(state.clock.total_s, 1e-9)}
    record.journal.metrics(state.step, {f"summary/{k}": v for k, v in found.items()})


def _save_weights(state: State, model: nn.Module, path: Path, about: dict[str, str]) -> None:
    retry(lambda: weights.save(model, path, about), state.cfg.train.retry_s, say=report.warn_of_trouble)


def _keep_best(state: State, run: RunDir, about: dict[str, str]) -> None:
    """Write the best weights beside the final ones, averaged where there is an average; damaged ones cost a warning."""
    best = checkpoint.Store(run.checkpoints).best
    if not best.is_file():
        return
    model = copy.deepcopy(weights.unwrap(state.model)).cpu()
    try:
        saved = checkpoint.load(best)
        weights.load_into(model, weights.load_state(best), str(best))
    except CheckpointError as error:
        run.best_weights.unlink(missing_ok=True)
        checkpoint.set_aside(best, str(error), report.say)
        return
    found = {"step": str(saved["step"]), "val_top1": repr(score(state.best))}
    _save_weights(state, model, run.best_weights, about | found)


def _is_finished(state: State, run: RunDir) -> bool:
    """Tell on every rank whether the run ended well and needs nothing more, and say so."""
    if state.step < state.plan.total_steps:
        return False
    finished: bool = state.world.from_main(state.world.is_main and read_run(run.path, whole=False).status == "FINISHED")
    if finished and state.world.is_main:
        told = read_run(run.path).summary
        found = ", ".join(f"{k} {told[f'val_{k}']:.2%}" for k in ("top1", "top5") if f"val_{k}" in told)
        report.say(f"{run.path}: finished already at step {state.step} ({found}); start another with a new run.dir")
    return finished
