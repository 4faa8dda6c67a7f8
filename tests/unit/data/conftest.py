"""Fixtures of the data room: folders of images of every kind, configurations and plans over them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Config, Plan, load, make_plan
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.data.index import Index
from pipeline.data.synthetic import make_index
from pipeline.world import World


def _photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Return smooth colours with noise on top, about as compressible as a photograph."""
    coarse = rng.integers(0, 256, (max(2, height // 24), max(2, width // 24), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray((smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8))


def _save_all_kinds(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotate by 90 degrees to show
    _photo(rng, 500, 375).save(folder / "a plain.JPEG", quality=92)
    _photo(rng, 333, 501).save(folder / "b odd ünïcode.jpg", quality=90)
    _photo(rng, 300, 230).convert("L").save(folder / "c grey.jpeg", quality=90)
    _photo(rng, 301, 257).convert("CMYK").save(folder / "d cmyk.jpg", quality=95)
    _photo(rng, 420, 280).save(folder / "e progressive.jpg", quality=90, progressive=True)
    _photo(rng, 290, 310).save(folder / "f png.JPEG", format="PNG")
    _photo(rng, 400, 260).save(folder / "g rotated.jpg", quality=92, exif=exif)
    _photo(rng, 37, 29).save(folder / "h tiny.bmp")
    _photo(rng, 260, 241).save(folder / "i web.WEBP", quality=95)
    _photo(rng, 257, 256).save(folder / "j full colour.jpg", quality=95, subsampling=0)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root of two classes with ten kinds of image in each, for training and for validation."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(5)
    for split in ("train", "val"):
        for name in ("n01 first", "n02 sécond"):
            _save_all_kinds(root / split / name, rng)
    return root


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A data root of two classes with three small images in each, for the test to break."""
    rng = np.random.default_rng(7)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "root" / split / name).mkdir(parents=True)
            for number in range(3):
                _photo(rng, 48, 40).save(tmp_path / "root" / split / name / f"{number}.jpg")
    return tmp_path / "root"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(cache: Path) -> Callable[..., Config]:
    """Make a configuration from overrides; its index cache is a temporary one."""

    def make(*overrides: str) -> Config:
        return load(None, [f"data.cache={cache}", "schedule.warmup=0ep", *overrides])

    return make


@pytest.fixture
def plan_for() -> Callable[[Config, Dataset, World], Plan]:
    def make(cfg: Config, dataset: Dataset, world: World) -> Plan:
        return make_plan(
            cfg,
            world_size=world.size,
            train_images=len(dataset.train),
            val_images=len(dataset.val),
            classes=len(dataset.classes),
        )

    return make


@pytest.fixture
def image_config(config: Callable[..., Config], images: Path) -> Callable[..., Config]:
    """A configuration over `images`: global batches of four micro-batches of two."""

    def make(*overrides: str) -> Config:
        small_crops = ("data.resolution=96", "eval.resize=128", "eval.crop=112")
        batches = ("batch.global=8", "batch.micro=2", "eval.batch=3", "train.epochs=2", "seed=11")
        return config(f"data.root={images}", *small_crops, *batches, *overrides)

    return make


@pytest.fixture
def image_data(image_config: Callable[..., Config]) -> Dataset:
    return open_dataset(image_config(), World())


@pytest.fixture(scope="session")
def sized() -> Callable[[list[tuple[int, int]]], Index]:
    """Make an index without files from heights and widths."""

    def make(sizes: list[tuple[int, int]]) -> Index:
        index = make_index("train", len(sizes), 1)
        heights, widths = (np.array(side, np.int32) for side in zip(*sizes, strict=True))
        return Index(index.folder, index.classes, index.names, index.offsets, index.labels, widths, heights)

    return make
