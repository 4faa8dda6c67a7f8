"""Executes plans on the CPU: DALI reads and decodes the boxes, torch resizes them; the cheapest way there."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn
from torch import Tensor

from pipeline.data import pixels
from pipeline.data.batch import Batch, Executor, Job, UnreadableError
from pipeline.data.dali import Encoded, decode_boxes, encoded, gist
from pipeline.data.index import Index
from pipeline.data.plan import BatchPlan
from pipeline.errors import DataError

_KEPT = 16  # batches of inputs; more than DALI's queues ever hold


class BoxFeed:
    """Hands plans to DALI as arrays, and remembers those whose boxes have not come back yet."""

    def __init__(self, index: Index, plans: Iterator[BatchPlan]) -> None:
        """Begin a sequence of plans."""
        self._index, self._plans = index, plans
        self._inputs: deque[Any] = deque(maxlen=_KEPT)
        self.pending: deque[BatchPlan] = deque()

    def __call__(self) -> tuple[Encoded, ...]:
        """Return the next plan of B images: paths or encoded images, int32[B, 2] start and int32[B, 2] shape of the box.

        Raises:
            StopIteration: after the last plan.
        """
        plan = next(self._plans)
        self.pending.append(plan)
        boxes = (np.ascontiguousarray(plan.boxes[:, :2]), np.ascontiguousarray(plan.boxes[:, 2:]))
        inputs = (encoded(self._index, plan.ids), *boxes)
        self._inputs.append(inputs)  # views of shards are not copied by DALI, so they have to live until it is done
        return inputs


class _Work(NamedTuple):
    """A batch whose boxes are being resized; `boxes` keeps DALI's memory."""

    plan: BatchPlan
    images: NDArray[np.uint8]
    boxes: Any
    futures: list[Future[None]]


class HybridExecutor(Executor):
    """Decodes with DALI's threads and resizes with as many of its own, `prefetch` batches ahead of the consumer."""

    def _run(self, first: int) -> Generator[Batch, None, None]:
        feed = BoxFeed(self.job.index, self.job.plans(first))
        graph = build_decoder(self.job, feed)
        pool = ThreadPoolExecutor(self.job.threads, "resize")
        ahead: deque[_Work] = deque()
        error: UnreadableError | None = None
        more = True
        try:
            while more or ahead:
                while more and len(ahead) < self.job.prefetch:
                    try:
                        boxes = graph.run()[0]
                    except StopIteration:
                        more = False
                    except DataError:  # of a plan
                        raise
                    except Exception as failed:  # DALI's exceptions have many types, and often name no file
                        error, more = UnreadableError(np.concatenate([p.ids for p in feed.pending]), gist(failed)), False
                    else:
                        ahead.append(self._start(pool, feed.pending.popleft(), boxes))
                if ahead:
                    yield self._finish(ahead.popleft())
            if error is not None:
                raise error
        finally:
            pool.shutdown(cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, plan: BatchPlan, boxes: Any) -> _Work:
        # A numpy array: of a tensor made in the consumer's inference mode, threads may not write into the memory.
        images = np.empty((len(plan), plan.size, plan.size, 3), np.uint8)
        # A task for each thread and not for each image: handing one over costs a tenth of resizing an image.
        parts = np.array_split(np.arange(len(plan)), self.job.threads)
        return _Work(plan, images, boxes, [pool.submit(_resize_all, boxes, plan, images, part.tolist()) for part in parts])

    def _finish(self, work: _Work) -> Batch:
        for future in work.futures:
            future.result()
        return self._batch(work.plan, torch.from_numpy(work.images))


def build_decoder(job: Job, feed: BoxFeed) -> Pipeline:
    """Return the graph from paths to uint8 boxes of the decoded images, each [height, width, 3]."""
    graph = Pipeline(job.batch, job.threads, None, prefetch_queue_depth=job.prefetch)
    with graph:
        images, start, shape = fn.external_source(source=feed, num_outputs=3, batch=True, no_copy=job.index.shards is not None)
        graph.set_outputs(decode_boxes(job.index, images, start, shape, device="cpu"))
    return graph


def _resize_all(boxes: Any, plan: BatchPlan, images: NDArray[np.uint8], places: list[int]) -> None:
    squares = torch.from_numpy(images).permute(0, 3, 1, 2)
    for place in places:
        box = torch.from_numpy(np.asarray(boxes[place])).permute(2, 0, 1)[None]
        resize(box, plan, place, squares[place : place + 1])
        if plan.choices is not None:
            images[place] = pixels.augment(images[place], plan.choices, place)


def resize(box: Tensor, plan: BatchPlan, place: int, out: Tensor) -> None:
    """Write the output square of a box (uint8[1, 3, h, w], channels last) into `out` (uint8[1, 3, S, S], channels last).

    Source: torch's antialiased bilinear filter for uint8 in channels-last order is Pillow's, and within 2 units of it.
    """
    size, (top, left) = plan.resized[place].tolist(), plan.offsets[place].tolist()
    filtered = torch.ops.aten._upsample_bicubic2d_aa if plan.bicubic else torch.ops.aten._upsample_bilinear2d_aa
    if size == [plan.size, plan.size] and not plan.flip[place]:
        filtered.out(box, size, False, out=out)
        return
    square = filtered(box, size, False)[..., top : top + plan.size, left : left + plan.size]
    out.copy_(square.flip(3) if plan.flip[place] else square)
