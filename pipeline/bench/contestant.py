"""One loader in a process of its own, which loads as many batches as it is told to on standard input."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

SIDE = 224
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Task:
    """What to load: a data root or pack, in batches, with threads or worker processes."""

    name: str
    root: str
    batch: int
    workers: int

    def text(self) -> str:
        """Return the task as an argument for `main`."""
        return json.dumps(asdict(self))


def main(argument: str) -> None:
    """Answer each number on standard input with the seconds that so many batches took."""
    task = Task(**json.loads(argument))
    batches = KINDS[task.name.removesuffix("-352")](task)
    for _ in islice(batches, 4):  # what starts once
        pass
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in islice(batches, int(line)):
            pass
        print(time.perf_counter() - start, flush=True)


def _ours(task: Task, *overrides: str) -> Iterator[Any]:
    from pipeline.config import load, make_plan
    from pipeline.data.loader import open_dataset, train_loader
    from pipeline.world import World

    cfg = load(
        None,
        [
            f"data.root={task.root}",
            f"data.cache={task.root}/cache",
            f"data.resolution={SIDE}",
            f"data.threads={task.workers}",
            f"batch.micro={task.batch}",
            "train.epochs=1000",
            *overrides,
        ],
    )
    data = open_dataset(cfg, World())
    sizes = {"train_images": len(data.train), "val_images": len(data.val), "classes": len(data.classes)}
    return iter(train_loader(cfg, make_plan(cfg, world_size=1, **sizes), World(), data, 0))


def _transform(*, normalised: bool) -> Any:
    """Return the training transform of torchvision's own reference script, up to the normalisation or with it."""
    import torch
    from torchvision import transforms

    steps = [transforms.RandomResizedCrop(SIDE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    if normalised:
        steps += [transforms.ConvertImageDtype(torch.float), transforms.Normalize(_MEAN, _STD)]
    return transforms.Compose(steps)


def _torchvision(task: Task, *, normalised: bool) -> Iterator[Any]:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    data = ImageFolder(str(Path(task.root) / "train"), _transform(normalised=normalised))
    loader = DataLoader(
        data, task.batch, shuffle=True, drop_last=True, num_workers=task.workers, persistent_workers=True, pin_memory=False
    )
    while True:
        yield from loader


def _timm(task: Task) -> Iterator[Any]:
    import torch
    from timm.data import create_dataset, create_loader

    data = create_dataset("", root=str(Path(task.root) / "train"), is_training=True)
    loader = create_loader(
        data,
        (3, SIDE, SIDE),
        task.batch,
        is_training=True,
        color_jitter=0.0,
        interpolation="bilinear",
        num_workers=task.workers,
        persistent_workers=True,
        pin_memory=False,
        device=torch.device("cpu"),
    )
    while True:
        yield from loader


def _webdataset(task: Task) -> Iterator[Any]:
    import webdataset as wds

    tars = [str(path) for path in sorted((Path(task.root) / "train").glob("*.tar"))]
    pipeline = wds.DataPipeline(
        wds.ResampledShards(tars),
        wds.tarfile_to_samples(),
        wds.shuffle(1000),
        wds.decode("pil"),
        wds.to_tuple("jpg", "cls"),
        wds.map_tuple(_transform(normalised=True), int),
        wds.batched(task.batch, partial=False),
    )
    return iter(wds.WebLoader(pipeline, batch_size=None, num_workers=task.workers, persistent_workers=True))


KINDS = {
    "ours-folder": _ours,
    "ours-pack": _ours,
    "ours-dali": lambda task: _ours(task, "data.executor=dali"),
    "torchvision-pil": lambda task: _torchvision(task, normalised=True),
    "torchvision-pil-uint8": lambda task: _torchvision(task, normalised=False),
    "timm": _timm,
    "webdataset": _webdataset,
}
"""How each contestant's endless batches are made."""

NEEDS = {"torchvision-pil": "torchvision", "torchvision-pil-uint8": "torchvision", "timm": "timm", "webdataset": "webdataset"}
"""The package that a contestant needs."""

if __name__ == "__main__":
    main(sys.argv[1])
