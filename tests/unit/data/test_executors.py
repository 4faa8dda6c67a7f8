"""The executors against each other, against torchvision, and over worlds."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize
from torchvision.transforms import functional as F

from pipeline.config import Config, Plan
from pipeline.data.batch import Batch
from pipeline.data.dataset import Dataset
from pipeline.data.loader import eval_loader, train_loader
from pipeline.data.order import micro_positions, permute
from pipeline.data.plan import train_plan
from pipeline.world import World

EXECUTORS = ["dali", "hybrid", "reference"]
PlanFor = Callable[[Config, Dataset, World], Plan]


def pixels(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.images for batch in batches]).int()


@pytest.fixture
def trained(image_data: Dataset, plan_for: PlanFor) -> Callable[..., list[Batch]]:
    """All training batches of one rank of a world."""

    def make(cfg: Config, rank: int = 0, size: int = 1, start_step: int = 0) -> list[Batch]:
        world = World(rank=rank, size=size)
        loader = train_loader(cfg, plan_for(cfg, image_data, world), world, image_data, start_step)
        batches = list(loader)
        loader.close()
        return batches

    return make


@pytest.fixture
def evaluated(image_data: Dataset, plan_for: PlanFor) -> Callable[..., list[Batch]]:
    """All evaluation batches of one rank of a world."""

    def make(cfg: Config, rank: int = 0, size: int = 1) -> list[Batch]:
        world = World(rank=rank, size=size)
        loader = eval_loader(cfg, world, image_data.val)
        batches = list(loader)
        loader.close()
        return batches

    return make


@pytest.mark.parametrize(("resize", "crop"), [(128, 112), (33, 32), (300, 224), (41, 18)])
def test_reference_evaluates_as_torchvision_does(
    resize: int,
    crop: int,
    image_config: Callable[..., Config],
    image_data: Dataset,
    evaluated: Callable[..., list[Batch]],
) -> None:
    batches = evaluated(image_config("data.executor=reference", f"eval.resize={resize}", f"eval.crop={crop}"))
    transform = Compose([Resize(resize), CenterCrop(crop)])
    for sample, ours in enumerate(pixels(batches)):
        with Image.open(image_data.val.path(sample)) as image:
            theirs = torch.from_numpy(np.array(transform(image.convert("RGB")))).permute(2, 0, 1)
        assert torch.equal(ours, theirs.int()), image_data.val.path(sample)


def test_reference_crops_as_torchvision_does(
    image_config: Callable[..., Config], image_data: Dataset, plan_for: PlanFor, trained: Callable[..., list[Batch]]
) -> None:
    cfg = image_config("data.executor=reference")
    plan = plan_for(cfg, image_data, World())
    batches = iter(trained(cfg))
    flips = 0
    for step in range(plan.total_steps):
        for micro in range(plan.accumulation):
            batch = next(batches)
            epoch, positions = micro_positions(step, micro, rank=0, world_size=1, plan=plan)
            assert batch.ids.tolist() == permute(positions, 20, cfg.seed, epoch).tolist()
            planned = train_plan(image_data.train, cfg.data, batch.ids, positions, seed=cfg.seed, epoch=epoch)
            for place, sample in enumerate(batch.ids.tolist()):
                with Image.open(image_data.train.path(sample)) as image:
                    square = F.resized_crop(image.convert("RGB"), *planned.boxes[place].tolist(), [96, 96])
                square = F.hflip(square) if planned.flip[place] else square
                assert torch.equal(batch.images[place], F.pil_to_tensor(square))
                flips += int(planned.flip[place])
    assert 0 < flips < 2 * plan.total_steps * plan.accumulation
    assert next(batches, None) is None


@pytest.fixture
def differences(
    image_config: Callable[..., Config], evaluated: Callable[..., list[Batch]], trained: Callable[..., list[Batch]]
) -> Callable[..., torch.Tensor]:
    """Absolute differences of an executor's and the reference's pixels, of evaluation or training batches."""

    def make(kind: str, executor: str, *overrides: str) -> torch.Tensor:
        batches = evaluated if kind == "evaluation" else trained
        ours, theirs = (batches(image_config(f"data.executor={name}", *overrides)) for name in (executor, "reference"))
        for ids_or_labels in ("ids", "labels"):
            both = [[getattr(batch, ids_or_labels).tolist() for batch in batches] for batches in (ours, theirs)]
            assert both[0] == both[1]
        return (pixels(ours) - pixels(theirs)).abs()

    return make


@pytest.mark.parametrize("kind", ["evaluation", "training"])
@pytest.mark.parametrize("executor", ["dali", "hybrid"])
def test_executors_agree_on_pixels(kind: str, executor: str, differences: Callable[..., torch.Tensor]) -> None:
    difference = differences(kind, executor, "eval.resize=256", "eval.crop=224", "data.resolution=224")
    assert difference.max() <= 2
    assert difference.double().mean() <= 0.2
    assert difference.double().mean(dim=(1, 2, 3)).max() <= 0.25  # of any one image


@pytest.mark.parametrize("kind", ["evaluation", "training"])
def test_executors_differ_in_the_outermost_pixels_of_strongly_reduced_crops_only(
    kind: str, differences: Callable[..., torch.Tensor]
) -> None:
    difference = differences(kind, "dali")
    assert difference.double().mean() <= 0.2
    assert difference[..., 1:-1, 1:-1].max() <= 1
    # At the border of a crop DALI's filter repeats the last pixel, where PIL's is cut off and weighted anew.
    assert difference.max() <= 6


@pytest.mark.parametrize("kind", ["evaluation", "training"])
def test_hybrid_agrees_on_strongly_reduced_crops_to_their_border(kind: str, differences: Callable[..., torch.Tensor]) -> None:
    difference = differences(kind, "hybrid")
    assert difference.max() <= 2
    assert difference.double().mean() <= 0.2


@pytest.mark.parametrize("executor", EXECUTORS)
def test_training_is_identical_over_worlds_and_from_the_middle(
    executor: str, image_config: Callable[..., Config], trained: Callable[..., list[Batch]]
) -> None:
    cfg = image_config(f"data.executor={executor}")
    alone = trained(cfg)
    assert len(alone) == 4 * 4  # steps times micro-batches
    for size in (2, 4):
        ranks = [trained(cfg, rank, size) for rank in range(size)]
        # Micro-batch j of a step is number j // size of rank j % size.
        shared = [batch for number in range(len(ranks[0])) for batch in (rank[number] for rank in ranks)]
        assert [batch.ids.tolist() for batch in shared] == [batch.ids.tolist() for batch in alone]
        assert torch.equal(pixels(shared), pixels(alone))
    resumed = trained(cfg, start_step=3)
    assert [batch.ids.tolist() for batch in resumed] == [batch.ids.tolist() for batch in alone[12:]]
    assert torch.equal(pixels(resumed), pixels(alone[12:]))
    assert trained(cfg, start_step=4) == []


def test_a_world_of_three_trains_on_the_same_pixels(
    image_config: Callable[..., Config], trained: Callable[..., list[Batch]]
) -> None:
    cfg = image_config("batch.global=12", "data.executor=dali")
    ranks = [trained(cfg, rank, 3) for rank in range(3)]
    shared = [batch for number in range(len(ranks[0])) for batch in (rank[number] for rank in ranks)]
    assert torch.equal(pixels(shared), pixels(trained(cfg)))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_each_image_is_evaluated_once_with_the_same_pixels_in_every_world(
    executor: str, image_config: Callable[..., Config], image_data: Dataset, evaluated: Callable[..., list[Batch]]
) -> None:
    cfg = image_config(f"data.executor={executor}", "batch.global=auto")
    alone = evaluated(cfg)
    assert [len(batch.ids) for batch in alone] == [3] * 6 + [2]
    for size in (1, 2, 3, 4, 8):
        batches = [batch for rank in range(size) for batch in evaluated(cfg, rank, size)]
        batches.sort(key=lambda batch: int(batch.ids[0]))
        ids = np.concatenate([batch.ids for batch in batches])
        assert ids.tolist() == list(range(20))
        assert torch.cat([batch.labels for batch in batches]).tolist() == image_data.val.labels.tolist()
        assert torch.equal(pixels(batches), pixels(alone))


@pytest.mark.parametrize("executor", [*EXECUTORS, "synthetic"])
def test_batches_are_channels_last_bytes(
    executor: str, image_config: Callable[..., Config], image_data: Dataset, plan_for: PlanFor
) -> None:
    cfg = image_config(f"data.executor={executor}")
    plan = plan_for(cfg, image_data, World())
    for loader, shape in (
        (train_loader(cfg, plan, World(), image_data, 0), (2, 3, 96, 96)),
        (eval_loader(cfg, World(), image_data.val), (3, 3, 112, 112)),
    ):
        batch = next(iter(loader))
        loader.close()
        assert (batch.images.dtype, batch.labels.dtype, batch.ids.dtype) == (torch.uint8, torch.int64, np.int64)
        assert batch.images.shape == shape
        assert batch.labels.shape == batch.ids.shape == shape[:1]
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
