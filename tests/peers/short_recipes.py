"""Short forms of three recipes in a plain loop with torchvision's and timm's own parts: what docs/recipes.md compares with.

No test: `python tests/peers/short_recipes.py data/digits` prints the top-1 of each over two seeds, in two minutes.
"""

import argparse
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import Mixup, create_transform
from timm.loss import BinaryCrossEntropy
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torchvision import datasets
from torchvision.transforms import v2

from pipeline.config.schema import Model
from pipeline.model import zoo

SIDE, RESIZE, EPOCHS, WARMUP = 32, 36, 3, 0.1
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Recipe:
    """The parts of a recipe, and the rate and batch that its short form takes in docs/recipes.md."""

    lr: float
    batch: int
    repeats: int
    train: Any
    val: Any
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    loss: nn.Module
    optimizer: dict[str, Any]


def torchvision_v2(repeats: int) -> Recipe:
    normalize = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    crop = [v2.RandomResizedCrop(SIDE, scale=(0.35, 1), antialias=True), v2.TrivialAugmentWide()]
    mix = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=10), v2.CutMix(alpha=1.0, num_classes=10)])
    return Recipe(
        0.1, 16, repeats,
        v2.Compose([*crop, *normalize, v2.RandomErasing(0.1)]),
        v2.Compose([v2.Resize(RESIZE, antialias=True), v2.CenterCrop(SIDE), *normalize]),
        mix, nn.CrossEntropyLoss(label_smoothing=0.1), {"opt": "sgd", "momentum": 0.9, "weight_decay": 2e-5},
    )  # fmt: skip


def rsb(lr: float, batch: int, mixup: float, weight_decay: float) -> Recipe:
    return Recipe(
        lr, batch, 3,
        create_transform(SIDE, is_training=True, scale=(0.35, 1), hflip=0, auto_augment="rand-m7-mstd0.5-inc1",
                         interpolation="bicubic", re_prob=0),
        create_transform(SIDE, is_training=False, interpolation="bicubic", crop_pct=SIDE / RESIZE),
        Mixup(mixup_alpha=mixup, cutmix_alpha=1.0, switch_prob=0.5, label_smoothing=0.1, num_classes=10),
        BinaryCrossEntropy(smoothing=0.1, target_threshold=0.2), {"opt": "lamb", "weight_decay": weight_decay},
    )  # fmt: skip


RECIPES = {
    "torchvision_v2": torchvision_v2(4),
    "torchvision_v2, data.repeats=1": torchvision_v2(1),
    "rsb_a1": rsb(0.01, 8, 0.2, 0.01),
    "rsb_a2": rsb(0.02, 16, 0.1, 0.02),
}


def top1(root: Path, recipe: Recipe, seed: int) -> float:
    """Train on `root/train` for three epochs and return the accuracy on `root/val`."""
    torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)  # noqa: NPY002 - what timm draws from
    images = list(datasets.ImageFolder(root / "train"))
    shape = {"n_blocks": (1, 1, 1), "n_channels": (16, 32, 64), "bottlenecks": None, "first_kernel_size": 3}
    model = zoo.build(Model(name="resnet", zero_init_gamma=True, **shape), 10)
    optimizer = create_optimizer_v2(model, lr=recipe.lr, **recipe.optimizer)
    per_epoch = len(images) // recipe.batch
    total = EPOCHS * per_epoch
    for step in range(total):
        if step % per_epoch == 0:
            order = torch.randperm(len(images)).repeat_interleave(recipe.repeats).tolist()
        ids = order[step % per_epoch * recipe.batch :][: recipe.batch]
        batch = torch.stack([recipe.train(images[i][0]) for i in ids])
        inputs, targets = recipe.mix(batch, torch.tensor([images[i][1] for i in ids]))
        done = step / total
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * min(done / WARMUP, 0.5 * (1 + math.cos(math.pi * max(0.0, done - WARMUP) / (1 - WARMUP))))
        loss = recipe.loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    val = datasets.ImageFolder(root / "val", recipe.val)
    with torch.no_grad():
        guesses = model(torch.stack([image for image, _ in val])).argmax(1)
    return float((guesses == torch.tensor(val.targets)).float().mean())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    where = parser.parse_args().root
    for name, one in RECIPES.items():
        print(f"{name}: {' and '.join(f'{top1(where, one, seed):.1%}' for seed in (0, 1))}", flush=True)
