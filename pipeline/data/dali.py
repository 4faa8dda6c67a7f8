"""Executes plans with DALI, on the CPU or the GPU; the only module that imports nvidia.dali.

Augmentation follows DALI: on the CPU with PIL, which is quicker than DALI's operations and like the reference to the bit
(`pixels`), on the GPU with torch (`tensors`).
"""

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipeline.data import tensors
from pipeline.data.batch import Batch, Executor, Job, UnreadableError
from pipeline.data.index import Index
from pipeline.data.order import Ints
from pipeline.data.pixels import Decoded, augmented
from pipeline.data.plan import BatchPlan
from pipeline.errors import DataError

Place = Literal["cpu", "gpu"]
Interpolation = Literal["bilinear", "bicubic"]
Encoded = NDArray[Any] | list[NDArray[np.uint8]]

_KEPT = 16  # batches of inputs; more than DALI's queues ever hold
# Sizes of the largest ImageNet images: buffers made once instead of growing while training, and the share of JPEGs for the
# GPU's hardware decoder. Upsampling of colour as on the CPU, so that both give the same pixels.
# Source: DALI's documentation of `decoders.image` and its ResNet-50 example (main.py).
_GPU_DECODER = {
    "preallocate_width_hint": 5980,
    "preallocate_height_hint": 6430,
    "hw_decoder_load": 0.65,
    "jpeg_fancy_upsampling": True,
}


class Feed:
    """Hands plans to DALI as arrays, and remembers those whose images have not come back yet."""

    def __init__(self, index: Index) -> None:
        """Start with no plan."""
        self._index = index
        self._plans: Iterator[BatchPlan] = iter(())
        self.pending: deque[BatchPlan] = deque()
        self._inputs: deque[Any] = deque(maxlen=_KEPT)

    def start(self, plans: Iterator[BatchPlan]) -> None:
        """Begin a sequence of plans."""
        self._plans = plans
        self.pending.clear()

    def __call__(self) -> tuple[Encoded, ...]:
        """Return the next plan of B images as the graph's inputs.

        Returns:
            uint8[B, L] paths, or B encoded images; int32[B, 2] start and int32[B, 2] shape of the box; float32[B, 2] start
            and float32[B, 2] end of the part of the box that the output shows; float32[B, 2]
            height and width of the output; int32[B] flip.

        Raises:
            StopIteration: after the last plan.
        """
        plan = next(self._plans)
        self.pending.append(plan)
        pixels = plan.boxes[:, 2:] / plan.resized
        start, end = plan.offsets * pixels, (plan.offsets + plan.size) * pixels
        inputs = (
            encoded(self._index, plan.ids),
            np.ascontiguousarray(plan.boxes[:, :2]),
            np.ascontiguousarray(plan.boxes[:, 2:]),
            start.astype(np.float32),
            end.astype(np.float32),
            np.full((len(plan), 2), plan.size, np.float32),
            plan.flip.astype(np.int32),
        )
        self._inputs.append(inputs)  # views of shards are not copied by DALI, so they have to live until it is done
        return inputs


def encoded(index: Index, ids: Ints) -> Encoded:
    """Return what `decode_boxes` takes: uint8[B, L] paths, or of samples in shards a list of B arrays uint8[bytes]."""
    return [index.shards.view(sample) for sample in ids.tolist()] if index.shards else index.paths(ids)


def decode_boxes(index: Index, images: Any, start: Any, shape: Any, **decoder: Any) -> Any:
    """Return the graph's node of the decoded boxes, uint8 [height, width, 3] each, as stored (not rotated by EXIF).

    `images` is the node of what `encoded` returns, `start` and `shape` are those of int32[B, 2] top and left, height and width.
    """
    read = images if index.shards else fn.io.file.read(images)
    return fn.decoders.image_slice(
        read, start, shape, axis_names="HW", output_type=types.RGB, adjust_orientation=False, **decoder
    )


def build_graph(job: Job, feed: Feed, interpolation: Interpolation, place: Place) -> Pipeline:
    """Return the graph from paths to uint8[B, S, S, 3], S as each plan says; on the GPU all but the reading runs there.

    Only the box is decoded. Resizing to the plan's size and cutting the output square out of it is one operation: the
    filter works on the part of the box that the square shows, and sees the pixels around it. Beyond the border of the box
    it repeats the last pixel, where PIL's is cut off: the outermost pixels of strongly reduced crops differ by a few units.
    """
    device_id = job.device.index if job.device.type == "cuda" else None
    graph = Pipeline(job.batch, job.threads, device_id, prefetch_queue_depth=job.prefetch)
    decoder = {"device": "mixed", **_GPU_DECODER} if place == "gpu" else {"device": "cpu"}
    with graph:
        images, box_start, box_shape, roi_start, roi_end, size, flip = fn.external_source(
            source=feed, num_outputs=7, batch=True, no_copy=job.index.shards is not None
        )
        images = decode_boxes(job.index, images, box_start, box_shape, **decoder)
        images = fn.resize(
            images,
            size=size,
            roi_start=roi_start,
            roi_end=roi_end,
            interp_type=types.INTERP_CUBIC if interpolation == "bicubic" else types.INTERP_LINEAR,
            antialias=True,
            device=place,
        )
        graph.set_outputs(fn.flip(images, horizontal=flip, device=place))
    return graph


class DaliExecutor(Executor):
    """Runs one graph over all passes; DALI's own threads work `prefetch` batches ahead."""

    def __init__(self, job: Job, interpolation: Interpolation, place: Place) -> None:
        """Take on a job of images that are decoded on the CPU or the GPU."""
        super().__init__(job)
        self._interpolation, self._place = interpolation, place
        self._kept: tuple[Pipeline, Feed] | None = None

    def close(self) -> None:
        """End the iteration and DALI's threads."""
        super().close()
        self._kept = None

    def _run(self, first: int) -> Generator[Batch, None, None]:
        decoded = self._decoded(first)
        if self.job.augments and self._place == "cpu":
            decoded = augmented(decoded, self.job.threads)
        with closing(decoded):
            for plan, images in decoded:
                on_gpu = self._place == "gpu" and plan.choices is not None
                yield self._batch(plan, _augment_on_gpu(plan, images) if on_gpu else images)

    def _decoded(self, first: int) -> Generator[Decoded, None, None]:
        """Yield plans and their images, uint8[B, S, S, 3], before augmentation."""
        graph, feed = self._kept or self._new()
        self._kept = None  # comes back only if the pass ends well: an abandoned graph holds batches
        feed.start(self.job.plans(first))
        stream = torch.cuda.current_stream(self.job.device) if self._place == "gpu" else None
        while True:
            try:
                (images,) = graph.run(stream)
            except StopIteration:
                break
            except DataError:  # of a plan
                raise
            except Exception as error:  # DALI's exceptions have many types, and often name no file
                ids = np.concatenate([plan.ids for plan in feed.pending])
                raise UnreadableError(ids, gist(error)) from error
            # DALI keeps the memory as long as the tensor lives, and gives it out again in the order of the stream named above.
            yield feed.pending.popleft(), from_dlpack(images.as_tensor())
        graph.reset()
        self._kept = graph, feed

    def _new(self) -> tuple[Pipeline, Feed]:
        feed = Feed(self.job.index)
        return build_graph(self.job, feed, self._interpolation, self._place), feed


def _augment_on_gpu(plan: BatchPlan, images: Tensor) -> Tensor:
    """Return augmented images; a copy, as the memory is DALI's."""
    return tensors.augment(images.clone(), plan.choices) if plan.choices else images


def gist(error: Exception) -> Exception:
    """Return the line of DALI's long message that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    after = lines.index("encountered:") + 1 if "encountered:" in lines else 0
    return RuntimeError("DALI: " + lines[after] if lines[after:] else repr(error))
