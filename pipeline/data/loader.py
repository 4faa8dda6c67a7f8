"""Loaders of training and evaluation batches: which plans they carry out, and with which executor."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from itertools import islice

import numpy as np

from pipeline.config import Config, Plan
from pipeline.data import augment, mixing
from pipeline.data.batch import Batch, Job, Loader
from pipeline.data.blocks import samples_at, window_batches
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.index import Index
from pipeline.data.normalize import Normalize
from pipeline.data.order import Ints, eval_positions, micro_positions, repeated
from pipeline.data.plan import BatchPlan, eval_plan, train_plan
from pipeline.data.quarantine import FILE as BAD_IMAGES
from pipeline.data.quarantine import Quarantine
from pipeline.data.resolution import resolution
from pipeline.data.shards import Runs, read_ahead
from pipeline.data.synthetic import SyntheticExecutor
from pipeline.errors import DataError
from pipeline.world import World

__all__ = [
    "BAD_IMAGES",
    "Batch",
    "Dataset",
    "Loader",
    "Normalize",
    "Quarantine",
    "eval_batch",
    "eval_loader",
    "open_dataset",
    "train_loader",
]


def train_loader(cfg: Config, plan: Plan, world: World, dataset: Dataset, start_step: int) -> Loader:
    """Return this rank's micro-batches of steps `start_step` to the last, `plan.accumulation` for each step.

    Raises:
        DataError: if the chosen executor can't run here.
    """
    index, bad, side = dataset.train, dataset.bad_train, resolution(cfg, plan)

    def samples(number: int) -> tuple[int, Ints, Ints]:
        step, micro = divmod(number, plan.accumulation)
        epoch, positions = micro_positions(step, micro, rank=world.rank, world_size=world.size, plan=plan)
        places = repeated(positions, cfg.data.repeats, plan.global_batch)
        return epoch, positions, samples_at(index, cfg.data, places, seed=cfg.seed, epoch=epoch)

    def numbers(first: int) -> range:
        return range(start_step * plan.accumulation + first, plan.total_steps * plan.accumulation)

    def plans(first: int) -> Iterator[BatchPlan]:
        for number in numbers(first):
            epoch, positions, ids = samples(number)
            ids = bad.replace(ids, positions, cfg.seed, epoch)
            data = cfg.data.model_copy(update={"resolution": side(epoch)})
            crops = train_plan(index, data, ids, positions, seed=cfg.seed, epoch=epoch)
            yield _augment(cfg, crops, positions, epoch)

    def runs(first: int) -> Runs | None:
        batches = window_batches(index, cfg.data, plan.micro_batch, world.size)
        if cfg.data.order != "blocks" or index.shards is None:
            return None
        groups = (numbers(first)[at : at + batches] for at in range(0, len(numbers(first)), batches))
        return Runs(batches, (np.concatenate([samples(number)[2] for number in group]) for group in groups))

    def ahead(first: int) -> Iterator[BatchPlan]:
        return read_ahead(plans(first), index.shards, runs(first))

    job = Job(index, ahead, plan.micro_batch, world.device, cfg.data.threads, cfg.data.prefetch, bad, cfg.augment.on)
    return _executor(cfg, job, cfg.data.resolution)


def _augment(cfg: Config, crops: BatchPlan, positions: Ints, epoch: int) -> BatchPlan:
    """Return the plan of a micro-batch with what happens to its images after the crop."""
    choices = augment.choose(cfg.augment, positions, seed=cfg.seed, epoch=epoch, size=crops.size, mean=cfg.data.mean)
    mixed = mixing.choose(cfg.mix, int(positions[0]), seed=cfg.seed, epoch=epoch, size=crops.size)
    return replace(crops, choices=choices, mixing=mixed)


def _ahead(plans: Callable[[int], Iterator[BatchPlan]], index: Index, first: int) -> Iterator[BatchPlan]:
    return read_ahead(plans(first), index.shards)


def eval_loader(cfg: Config, world: World, index: Index, bad: Quarantine | None = None) -> Loader:
    """Return this rank's share of the images of `index`, each image on exactly one rank and in one batch.

    Images in the quarantine `bad` are left out; without one, an image that can't be read is an error.

    Raises:
        DataError: if the chosen executor can't run here.
    """
    batch = cfg.eval.batch or cfg.batch.micro

    def plans(first: int) -> Iterator[BatchPlan]:
        batches = eval_positions(len(index), batch, rank=world.rank, world_size=world.size)
        good = (bad.good(ids) if bad else ids for ids in batches)
        for ids in islice((ids for ids in good if len(ids)), first, None):
            yield _eval_plan(cfg, index, ids)

    job = Job(index, partial(_ahead, plans, index), batch, world.device, cfg.data.threads, cfg.data.prefetch, bad)
    return _executor(cfg, job, cfg.eval.crop)


def _eval_plan(cfg: Config, index: Index, ids: Ints) -> BatchPlan:
    return eval_plan(index, cfg.eval, ids, bicubic=cfg.data.interpolation == "bicubic")


def eval_batch(cfg: Config, world: World, index: Index, ids: Sequence[int]) -> Batch:
    """Return the images of samples `ids` of `index` as evaluation sees them, in one batch.

    Raises:
        DataError: if an image can't be read.
    """
    wanted = np.array(ids, np.int64)

    def plans(first: int) -> Iterator[BatchPlan]:
        return islice(iter([_eval_plan(cfg, index, wanted)]), first, None)

    job = Job(index, plans, len(ids), world.device, cfg.data.threads, 1)
    with closing(_executor(cfg, job, cfg.eval.crop)) as loader:
        return next(iter(loader))


def _executor(cfg: Config, job: Job, size: int) -> Loader:
    makers: dict[str, Callable[[], Loader]] = {
        "dali": lambda: _dali(cfg, job),
        "hybrid": lambda: _hybrid(cfg, job),
        "reference": lambda: _reference(job),
        "synthetic": lambda: SyntheticExecutor(job, size),
    }
    chosen = cfg.data.executor
    if chosen == "auto":
        chosen = "reference" if not _has_dali() else "dali" if _decodes_on_gpu(cfg, job) else "hybrid"
    return makers[chosen]()


def _dali(cfg: Config, job: Job) -> Loader:
    _need_dali()
    on_gpu = _decodes_on_gpu(cfg, job)
    from pipeline.data.dali import DaliExecutor  # machines without DALI use the other executors

    return DaliExecutor(job, cfg.data.interpolation, "gpu" if on_gpu else "cpu")


def _hybrid(cfg: Config, job: Job) -> Loader:
    _need_dali()
    if cfg.data.device == "gpu":
        raise DataError("data.executor: hybrid decodes on the CPU; use data.device=auto, or data.executor=dali")
    from pipeline.data.hybrid import HybridExecutor

    return HybridExecutor(job)


def _need_dali() -> None:
    if not _has_dali():
        raise DataError(
            "data.executor: DALI is not installed here; install nvidia-dali-cuda130, or use data.executor=reference"
        )


def _decodes_on_gpu(cfg: Config, job: Job) -> bool:
    on_gpu = job.device.type == "cuda"
    if cfg.data.device == "gpu" and not on_gpu:
        raise DataError("data.device: gpu, but this process trains on the CPU; use data.device=cpu or auto")
    return on_gpu and cfg.data.device != "cpu"


def _reference(job: Job) -> Loader:
    from pipeline.data.reference import ReferenceExecutor  # torchvision takes over a second, and DALI does without

    return ReferenceExecutor(job)


def _has_dali() -> bool:
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
