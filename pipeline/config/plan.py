"""What a configuration means for a given world and data set: steps, batches, the learning rate.

A plan is logged beside the configuration and never written back into it.
"""

from dataclasses import asdict, dataclass

from pipeline.config.schema import Config
from pipeline.errors import ConfigError, WorldError
from pipeline.units import count


@dataclass(frozen=True)
class Plan:
    """Derived values; lengths are in optimiser steps, sizes in images."""

    world_size: int
    train_images: int
    val_images: int
    classes: int
    global_batch: int
    micro_batch: int
    accumulation: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    log_every: int
    eval_batch: int
    peak_lr: float

    def as_dict(self) -> dict[str, int | float]:
        """Return the plan as plain values for logs."""
        return asdict(self)


def make_plan(cfg: Config, *, world_size: int, train_images: int, val_images: int, classes: int) -> Plan:
    """Work out the plan.

    The tail of an epoch that does not fill a global batch is dropped: an epoch has
    `train_images // global_batch` steps, over another permutation each time.

    Raises:
        WorldError: if the world can't share the global batch's micro-batches evenly.
        ConfigError: if the data set is smaller than one global batch, or a length is zero or too long.
    """
    global_batch = _global_batch(cfg, world_size)
    steps_per_epoch = train_images // global_batch
    if steps_per_epoch == 0:
        raise ConfigError(
            f"batch.global: {global_batch} images a step, but the training set has only {train_images}; lower batch.global"
        )
    total = cfg.train.epochs.steps(steps_per_epoch)
    warmup = cfg.schedule.warmup.steps(steps_per_epoch, total)
    if total == 0:
        raise ConfigError(f"train.epochs: {cfg.train.epochs} is less than one step of {global_batch} images")
    if warmup > total:
        raise ConfigError(f"schedule.warmup: {warmup} steps are longer than the training ({total}); shorten it, e.g. 10%")
    _check_ramp(cfg, steps_per_epoch, total)
    if cfg.ema.keep is not None and cfg.ema.every > total:
        raise ConfigError(f"ema.every: {cfg.ema.every} steps are longer than the training ({total}); lower it")
    return Plan(
        world_size=world_size,
        train_images=train_images,
        val_images=val_images,
        classes=classes,
        global_batch=global_batch,
        micro_batch=cfg.batch.micro,
        accumulation=global_batch // (cfg.batch.micro * world_size),
        steps_per_epoch=steps_per_epoch,
        total_steps=total,
        warmup_steps=warmup,
        log_every=min(cfg.train.log_every, steps_per_epoch),
        eval_batch=cfg.eval.batch or cfg.batch.micro,
        peak_lr=cfg.optim.lr * (global_batch / cfg.optim.lr_per if cfg.optim.lr_per else 1.0),
    )


def check_world(cfg: Config, world_size: int) -> None:
    """Refuse a world that can't share the global batch, before it is joined.

    Raises:
        ConfigError: on every rank alike, so that it is printed once.
    """
    try:
        _global_batch(cfg, world_size)
    except WorldError as error:
        raise ConfigError(str(error)) from error


def _check_ramp(cfg: Config, steps_per_epoch: int, total: int) -> None:
    """Refuse a ramp that ends before it begins, where only the length of an epoch shows it."""
    begin, end = (place.steps(steps_per_epoch, total) for place in (cfg.resize.begin, cfg.resize.end))
    if cfg.resize.start is not None and end < begin:
        raise ConfigError(
            f"resize.end: the ramp ends ({cfg.resize.end}, step {end}) before it begins ({cfg.resize.begin}, step {begin}); "
            "swap them"
        )


def _global_batch(cfg: Config, world_size: int) -> int:
    images = _shared_batch(cfg, world_size)
    if cfg.data.repeats > images:
        raise ConfigError(
            f"data.repeats: an image can't come {cfg.data.repeats} times in a step of {count(images, 'image')}; "
            "lower it, or raise batch.global"
        )
    return images


def _shared_batch(cfg: Config, world_size: int) -> int:
    micro = cfg.batch.micro
    if cfg.batch.global_ == "auto":
        return micro * world_size
    micros = cfg.batch.global_ // micro
    if micros % world_size:
        *some, most = (str(w) for w in range(1, micros + 1) if micros % w == 0)
        good = f"{', '.join(some)} or {most}" if some else most
        raise WorldError(
            f"batch.global: {count(micros, 'micro-batch', 'micro-batches')} ({cfg.batch.global_} / {micro}) "
            f"can't be shared by {world_size} processes; "
            f"start {good} of them, or {_remedy(cfg, cfg.batch.global_, world_size)}"
        )
    return cfg.batch.global_


def _remedy(cfg: Config, images: int, world_size: int) -> str:
    """Return what lets a world share the global batch: the largest micro-batch that does, or another global batch."""
    share, least = images // world_size, 2 if cfg.mix.on else 1
    fits = [micro for micro in range(least, min(cfg.batch.micro, share) + 1) if share % micro == 0]
    if images % world_size or not fits:
        return f"set batch.global to a multiple of {world_size} x batch.micro"
    return f"set batch.micro={fits[-1]}, the largest that fits"
