"""Loaders of training and evaluation batches: which plans they carry out, and with which executor.

Not here: how a plan comes about (`order`, `plan`) and how it is executed (`dali`, `reference`, `synthetic`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from importlib.util import find_spec

import numpy as np

from pipeline.config import Config, Plan
from pipeline.data.batch import Batch, Job, Loader
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.index import Index
from pipeline.data.normalize import Normalize
from pipeline.data.order import eval_positions, micro_positions, permute
from pipeline.data.plan import BatchPlan, eval_plan, train_plan
from pipeline.data.synthetic import SyntheticExecutor
from pipeline.errors import DataError
from pipeline.world import World

__all__ = ["Batch", "Dataset", "Loader", "Normalize", "eval_batch", "eval_loader", "open_dataset", "train_loader"]


def train_loader(cfg: Config, plan: Plan, world: World, dataset: Dataset, start_step: int) -> Loader:
    """Return this rank's micro-batches of steps `start_step` to the last, `plan.accumulation` for each step.

    Raises:
        DataError: if the chosen executor can't run here.
    """
    index = dataset.train

    def plans() -> Iterator[BatchPlan]:
        for step in range(start_step, plan.total_steps):
            for micro in range(plan.accumulation):
                epoch, positions = micro_positions(step, micro, rank=world.rank, world_size=world.size, plan=plan)
                ids = permute(positions, plan.train_images, cfg.seed, epoch)
                yield train_plan(index, cfg.data, ids, positions, seed=cfg.seed, epoch=epoch)

    job = Job(index, plans, plan.micro_batch, world.device, cfg.data.threads, cfg.data.prefetch)
    return _executor(cfg, job, cfg.data.resolution)


def eval_loader(cfg: Config, world: World, index: Index) -> Loader:
    """Return this rank's share of the images of `index`, each image on exactly one rank and in one batch.

    Raises:
        DataError: if the chosen executor can't run here.
    """
    batch = cfg.eval.batch or cfg.batch.micro

    def plans() -> Iterator[BatchPlan]:
        for ids in eval_positions(len(index), batch, rank=world.rank, world_size=world.size):
            yield eval_plan(index, cfg.eval, ids)

    job = Job(index, plans, batch, world.device, cfg.data.threads, cfg.data.prefetch)
    return _executor(cfg, job, cfg.eval.crop)


def eval_batch(cfg: Config, world: World, index: Index, ids: Sequence[int]) -> Batch:
    """Return the images of samples `ids` of `index` as evaluation sees them, in one batch.

    Raises:
        DataError: if an image can't be read.
    """
    wanted = np.array(ids, np.int64)
    job = Job(index, lambda: iter([eval_plan(index, cfg.eval, wanted)]), len(ids), world.device, cfg.data.threads, 1)
    with closing(_executor(cfg, job, cfg.eval.crop)) as loader:
        return next(iter(loader))


def _executor(cfg: Config, job: Job, size: int) -> Loader:
    makers: dict[str, Callable[[], Loader]] = {
        "dali": lambda: _dali(cfg, job, size),
        "reference": lambda: _reference(job),
        "synthetic": lambda: SyntheticExecutor(job, size),
    }
    chosen = cfg.data.executor
    if chosen == "auto":
        chosen = "dali" if _has_dali() else "reference"
    return makers[chosen]()


def _dali(cfg: Config, job: Job, size: int) -> Loader:
    if not _has_dali():
        raise DataError(
            "data.executor: DALI is not installed here; install nvidia-dali-cuda130, or use data.executor=reference"
        )
    on_gpu = job.device.type == "cuda"
    if cfg.data.device == "gpu" and not on_gpu:
        raise DataError("data.device: gpu, but this process trains on the CPU; use data.device=cpu or auto")
    from pipeline.data.dali import DaliExecutor  # machines without DALI use the other executors

    return DaliExecutor(job, size, "gpu" if on_gpu and cfg.data.device != "cpu" else "cpu")


def _reference(job: Job) -> Loader:
    from pipeline.data.reference import ReferenceExecutor  # torchvision takes over a second, and DALI does without

    return ReferenceExecutor(job)


def _has_dali() -> bool:
    return find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
