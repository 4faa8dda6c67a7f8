"""Executes plans with PIL and torchvision in threads: what DALI is checked against, and used where DALI does not run."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from pipeline.data import image, pixels
from pipeline.data.batch import Batch, Executor, UnreadableError
from pipeline.data.plan import BatchPlan


class ReferenceExecutor(Executor):
    """Reads, crops, resizes, flips and augments with `threads` threads, `prefetch` batches ahead of the consumer."""

    def _run(self, first: int) -> Generator[Batch, None, None]:
        plans = self.job.plans(first)
        pool = ThreadPoolExecutor(self.job.threads, "decode")
        try:
            ahead = deque(self._start(pool, plan) for plan in islice(plans, self.job.prefetch))
            while ahead:
                pending = ahead.popleft()
                ahead.extend(self._start(pool, plan) for plan in islice(plans, 1))
                yield self._finish(pending)
        finally:
            pool.shutdown(cancel_futures=True)

    def _start(self, pool: ThreadPoolExecutor, plan: BatchPlan) -> "_Pending":
        return plan, [pool.submit(self._image, plan, place) for place in range(len(plan))]

    def _finish(self, pending: "_Pending") -> Batch:
        plan, futures = pending
        try:
            images = np.stack([future.result() for future in futures])
        except Exception as error:  # PIL's decoders raise anything on broken files
            raise UnreadableError(plan.ids, error) from error
        return self._batch(plan, torch.from_numpy(images))

    def _image(self, plan: BatchPlan, place: int) -> NDArray[np.uint8]:
        sample = int(plan.ids[place])
        index = self.job.index
        whole = image.read_rgb(index.source(sample))
        if whole.size != (index.widths[sample], index.heights[sample]):
            raise ValueError("not of the size that it was indexed with")
        square = np.asarray(execute(whole, plan, place))
        return pixels.augment(square, plan.choices, place) if plan.choices else square


_Pending = tuple[BatchPlan, list[Future[NDArray[np.uint8]]]]


def execute(whole: Image.Image, plan: BatchPlan, place: int) -> Image.Image:
    """Return the output square of a decoded image, as the plan says at `place`."""
    top, left, height, width = plan.boxes[place].tolist()
    mode = InterpolationMode.BICUBIC if plan.bicubic else InterpolationMode.BILINEAR
    square: Image.Image = F.resized_crop(whole, top, left, height, width, plan.resized[place].tolist(), mode)
    square = F.crop(square, *plan.offsets[place].tolist(), plan.size, plan.size)
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if plan.flip[place] else square
