"""Synthetic batches, for benchmarks: the same random images again and again, with the labels of a made-up data set."""

from collections.abc import Generator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.data.batch import Batch, Executor, Job
from pipeline.data.index import Index

_SIDE = 500  # pixels, as a typical ImageNet image


def make_index(split: str, n: int, classes: int) -> Index:
    """Return an index of `n` samples that have sizes and labels (`id % classes`) but no files."""
    side = np.broadcast_to(np.int32(_SIDE), (n,))
    return Index(
        folder=Path("synthetic") / split,
        classes=tuple(f"{label:04d}" for label in range(classes)),
        names=np.empty(0, np.uint8),
        offsets=np.broadcast_to(np.int64(0), (n + 1,)),
        labels=(np.arange(n) % classes).astype(np.int32),
        widths=side,
        heights=side,
    )


class SyntheticExecutor(Executor):
    """Yields the same images, made once on the device for each size, with each plan's labels; nothing is augmented."""

    def __init__(self, job: Job, size: int) -> None:
        """Take on a job of images with `size` pixels a side."""
        super().__init__(job)
        self._sizes = {size: self._make(size)}

    def _make(self, size: int) -> Tensor:
        generator = torch.Generator(self.job.device).manual_seed(0)
        shape = (self.job.batch, size, size, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8, device=self.job.device, generator=generator)

    def _run(self, first: int) -> Generator[Batch, None, None]:
        for plan in self.job.plans(first):
            if plan.size not in self._sizes:
                self._sizes[plan.size] = self._make(plan.size)
            yield self._batch(plan, self._sizes[plan.size][: len(plan)])
