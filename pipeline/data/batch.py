"""What a loader yields, and what every executor is given and has in common."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.data.index import Index
from pipeline.data.mixing import Mixing
from pipeline.data.order import Ints
from pipeline.data.plan import BatchPlan
from pipeline.data.quarantine import Quarantine
from pipeline.errors import DataError


@dataclass(frozen=True)
class Batch:
    """A batch of B images of S x S pixels.

    Attributes:
        images: uint8[B, 3, S, S] on the device, RGB, in channels-last memory order.
        labels: int64[B] on the device.
        ids: int64[B], numpy, sample numbers in the index.
        mixing: how the batch is to be mixed once it is normalised; None: not at all.
    """

    images: Tensor
    labels: Tensor
    ids: Ints
    mixing: Mixing | None = None


class Loader(Protocol):
    """Something to take batches from; it can be iterated over again, which starts from its beginning."""

    def __iter__(self) -> Iterator[Batch]:
        """Start over and yield batches; a second iteration ends the first."""

    def close(self) -> None:
        """End the iteration and the threads behind it."""


@dataclass(frozen=True)
class Job:
    """What an executor is to do.

    `plans(k)` starts the sequence of batches, of at most `batch` images each, with number k. Bad images that
    an executor meets go into the quarantine, and the plans take that into account; without one they are errors.
    `augments` says whether plans have augmentations to carry out.
    """

    index: Index
    plans: Callable[[int], Iterator[BatchPlan]]
    batch: int
    device: torch.device
    threads: int
    prefetch: int
    quarantine: Quarantine | None = None
    augments: bool = False


class UnreadableError(Exception):
    """An executor could not read one or more of the samples `ids` (int64[B]); it is not known yet which."""

    def __init__(self, ids: Ints, cause: Exception) -> None:
        """Remember the samples and the decoder's error."""
        super().__init__(str(cause))
        self.ids, self.cause = ids, cause


class Executor(ABC):
    """A loader that executes plans in a generator, which owns the threads and ends them when it is closed."""

    def __init__(self, job: Job) -> None:
        """Take on a job; nothing is started yet."""
        self.job = job
        self._running: Generator[Batch, None, None] | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Start over and yield batches; a second iteration ends the first.

        Raises:
            DataError: while iterating, if an image can't be read and there is no quarantine, or it does not explain the error.
        """
        self._stop()
        self._running = self._resilient()
        return self._running

    def _resilient(self) -> Generator[Batch, None, None]:
        """Yield all batches; where an image can't be read, learn which, and go on with plans that do without it."""
        done, quarantine = 0, self.job.quarantine
        met: dict[int, dict[int, str]] = {}
        while not (quarantine and quarantine.full):
            try:
                with closing(self._run(done)) as batches:
                    for batch in batches:
                        self._met(met, done)
                        done += 1
                        yield batch
                break
            except UnreadableError as error:
                for number, found in self._learn(error, done).items():
                    met.setdefault(number, {}).update(found)
                self._met(met, done)
        for number in list(met):
            self._met(met, number)
        # All ranks stop at the end of this step, which the others are in the midst of: until then any pixels will do.
        for plan in self.job.plans(done) if quarantine and quarantine.full else ():
            yield self._batch(plan, torch.zeros(len(plan), plan.size, plan.size, 3, dtype=torch.uint8))

    def _met(self, met: dict[int, dict[int, str]], number: int) -> None:
        """Count the bad images of a batch whose turn has come."""
        if self.job.quarantine is not None and number in met:
            self.job.quarantine.learn(met.pop(number))

    def _learn(self, error: UnreadableError, number: int) -> dict[int, dict[int, str]]:
        """Return what is wrong with which images, by the batch that each is in, from `number` on; others stand in for them."""
        quarantine, index = self.job.quarantine, self.job.index
        found = index.problems(error.ids)
        if not found:
            raise index.explain(error.ids, error.cause) from error.cause
        if quarantine is None:
            sample, reason = next(iter(found.items()))
            raise DataError(f"{index.path(sample)}: {reason}; replace or remove this file and start again") from error.cause
        known = set(quarantine.bad.tolist())
        new = {sample: reason for sample, reason in found.items() if sample not in known}
        for sample, reason in new.items():
            tqdm.write(f"bad image, left out: {index.path(sample)}: {reason}", file=sys.stderr)
        places: dict[int, dict[int, str]] = {}
        left = dict(new)
        for place, plan in enumerate(self.job.plans(number), number):  # the plans that failed: nothing is learned yet
            if not left:
                break
            places[place] = {sample: left.pop(sample) for sample in plan.ids.tolist() if sample in left}
        quarantine.expect(new)
        return places

    def close(self) -> None:
        """End the iteration and the threads behind it."""
        self._stop()

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    @abstractmethod
    def _run(self, first: int) -> Generator[Batch, None, None]:
        """Yield the batches of one pass over the job's plans, from number `first` on.

        Raises:
            UnreadableError: if an image can't be read; the batches before it have been yielded.
        """

    def _batch(self, plan: BatchPlan, images: Tensor) -> Batch:
        """Return uint8[B, S, S, 3] images of a plan as a batch on the device."""
        labels = to_device(torch.from_numpy(plan.labels), self.job.device)
        return Batch(to_device(images, self.job.device).permute(0, 3, 1, 2), labels, plan.ids, plan.mixing)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on the device; a copy to a GPU goes through pinned memory, so that the host need not wait for it."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
