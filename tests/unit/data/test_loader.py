"""The life of a loader: choice of executor, iteration, errors, the end of its threads."""

import gc
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.config import Config, Plan
from pipeline.data.batch import Loader
from pipeline.data.dali import DaliExecutor
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.hybrid import HybridExecutor
from pipeline.data.loader import eval_loader, train_loader
from pipeline.data.reference import ReferenceExecutor
from pipeline.data.synthetic import SyntheticExecutor
from pipeline.errors import DataError
from pipeline.world import World

EXECUTORS = ["dali", "hybrid", "reference"]
PlanFor = Callable[[Config, Dataset, World], Plan]


@pytest.fixture
def evaluation(image_config: Callable[..., Config], image_data: Dataset, plan_for: PlanFor) -> Callable[..., Loader]:
    def make(*overrides: str) -> Loader:
        cfg = image_config(*overrides)
        return eval_loader(cfg, World(), image_data.val)

    return make


def threads() -> int:
    """Count this process's threads, also those that Python does not know of."""
    gc.collect()  # loaders that earlier tests left to the garbage
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_images_stay_valid_while_the_loader_goes_on(executor: str, evaluation: Callable[..., Loader]) -> None:
    loader = evaluation(f"data.executor={executor}", "eval.batch=1")
    kept = [(batch.images, batch.images.clone()) for batch in loader]
    loader.close()
    assert len(kept) == 20
    assert all(torch.equal(images, copy) for images, copy in kept)


@pytest.mark.parametrize("executor", [*EXECUTORS, "synthetic"])
def test_a_loader_starts_over(executor: str, evaluation: Callable[..., Loader]) -> None:
    loader = evaluation(f"data.executor={executor}")
    first = [batch.images for batch in loader]
    next(iter(loader))  # one that is abandoned
    for _ in range(2):
        again = [batch.images for batch in loader]
        assert len(again) == 7
        assert all(torch.equal(*pair) for pair in zip(again, first, strict=True))
    loader.close()


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("consumed", [1, 7])
def test_close_ends_the_threads(executor: str, consumed: int, evaluation: Callable[..., Loader]) -> None:
    loader = evaluation(f"data.executor={executor}", "data.threads=3")
    list(loader)  # what the libraries start once for good
    loader.close()
    before = threads()
    batches = iter(loader)
    for _ in range(consumed):
        next(batches)
    assert threads() > before
    loader.close()
    assert threads() == before
    assert next(batches, None) is None


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:300])


def overwrite(path: Path) -> None:
    path.write_text("no image")


def resize(path: Path) -> None:
    Image.new("RGB", (20, 10)).save(path)


DAMAGES = [
    (truncate, ""),
    (overwrite, "not a JPEG, PNG, BMP, PPM, TIFF or WebP image"),
    (Path.unlink, "no such file"),
    (resize, "is 20x10 pixels, but was 48x40 when it was indexed"),
]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_that_fails_is_named(
    split: str,
    damage: tuple[Callable[[Path], object], str],
    executor: str,
    small: Path,
    config: Callable[..., Config],
    plan_for: PlanFor,
) -> None:
    crops = ("data.crop_scale=[1.0, 1.0]", "data.resolution=32", "eval.resize=36", "eval.crop=32")
    cfg = config(f"data.root={small}", f"data.executor={executor}", "batch.micro=2", "train.epochs=2", *crops)
    dataset = open_dataset(cfg, World())
    plan = plan_for(cfg, dataset, World())
    path = small / split / "dog" / "1.jpg"
    spoil, reason = damage
    spoil(path)
    loader = train_loader(cfg, plan, World(), dataset, 0) if split == "train" else eval_loader(cfg, World(), dataset.val)
    with pytest.raises(DataError) as failed:
        list(loader)
        dataset.bad_train.share(World())  # in training all ranks stop together
    loader.close()
    message = str(failed.value)
    assert message.startswith(f"{path}: {reason}")
    assert message.endswith("; replace or remove this file and start again")
    assert "\n" not in message


def test_a_file_that_only_dali_can_t_read_is_reported_with_its_batch(
    small: Path, config: Callable[..., Config], plan_for: PlanFor
) -> None:
    cfg = config(f"data.root={small}", "data.executor=dali", "eval.batch=3", "eval.resize=36", "eval.crop=32", "batch.micro=2")
    dataset = open_dataset(cfg, World())
    Image.fromarray(np.zeros((40, 48), np.float32)).save(small / "val" / "dog" / "1.jpg", format="PPM")
    loader = eval_loader(cfg, World(), dataset.val)
    with pytest.raises(DataError) as failed:
        list(loader)
    loader.close()
    assert "DALI: " in str(failed.value)
    assert str(small / "val") in str(failed.value)
    assert str(failed.value).endswith("; data.executor=reference may read it")
    assert "\n" not in str(failed.value)


def test_the_executor_is_chosen_by_the_config(evaluation: Callable[..., Loader], monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(evaluation(), HybridExecutor)
    assert isinstance(evaluation("data.executor=dali"), DaliExecutor)
    assert isinstance(evaluation("data.executor=reference"), ReferenceExecutor)
    assert isinstance(evaluation("data.executor=synthetic"), SyntheticExecutor)
    with pytest.raises(DataError, match="data.device: gpu, but this process trains on the CPU; use data.device=cpu or auto"):
        evaluation("data.device=gpu")
    found = importlib.util.find_spec
    monkeypatch.setattr("pipeline.data.loader.find_spec", lambda name: found(name) if name == "nvidia" else None)
    assert isinstance(evaluation(), ReferenceExecutor)
    with pytest.raises(DataError, match="data.executor: DALI is not installed here; install nvidia-dali-cuda130, or use"):
        evaluation("data.executor=dali")


def test_synthetic_batches_have_the_labels_of_their_ids(config: Callable[..., Config], plan_for: PlanFor) -> None:
    sizes = ("data.synthetic_train=50", "data.synthetic_val=7", "data.synthetic_classes=3", "data.resolution=16")
    cfg = config("data.executor=synthetic", "batch.micro=4", "train.epochs=2", *sizes)
    dataset = open_dataset(cfg, World())
    batches = list(train_loader(cfg, plan_for(cfg, dataset, World()), World(), dataset, 0))
    assert len(batches) == 24
    assert all(batch.labels.tolist() == (batch.ids % 3).tolist() for batch in batches)
    assert len({int(i) for batch in batches[:12] for i in batch.ids}) == 48
    assert batches[0].images.float().std() > 60
