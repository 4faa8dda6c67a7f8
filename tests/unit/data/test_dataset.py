import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.data.dataset import Dataset, open_dataset
from pipeline.errors import DataError
from pipeline.world import World


def error_of(cfg: Config) -> str:
    with pytest.raises(DataError) as failed:
        open_dataset(cfg, World())
    assert "\n" not in str(failed.value)
    return str(failed.value)


def test_both_splits_and_their_classes_are_there(image_data: Dataset, images: Path) -> None:
    assert image_data.classes == ("n01 first", "n02 sécond")
    assert (len(image_data.train), len(image_data.val)) == (20, 20)
    assert image_data.train.folder == images / "train"
    assert image_data.val.folder == images / "val"


def test_synthetic_data_needs_no_files(config: Callable[..., Config]) -> None:
    sizes = ("data.synthetic_train=10", "data.synthetic_val=7", "data.synthetic_classes=3")
    dataset = open_dataset(config("data.executor=synthetic", *sizes), World())
    assert (len(dataset.train), len(dataset.val), len(dataset.classes)) == (10, 7, 3)
    assert dataset.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


def test_root_that_is_not_set(config: Callable[..., Config]) -> None:
    assert error_of(config()).startswith("data.root: is not set; set it to a folder with train/<class>/*")


def test_root_that_is_missing_or_a_file(config: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("nowhere", "file"):
        assert error_of(config(f"data.root={tmp_path / name}")).startswith(f"data.root: {tmp_path / name} is not a folder;")


def test_root_that_is_empty(config: Callable[..., Config], tmp_path: Path) -> None:
    assert error_of(config(f"data.root={tmp_path}")).startswith(f"data.root: {tmp_path} is empty;")


def test_root_without_a_split(config: Callable[..., Config], small: Path) -> None:
    shutil.rmtree(small / "val")
    assert f"{small} has no folder val; set it to" in error_of(config(f"data.root={small}"))
    (small / "train").rename(small / "training")
    assert "has no folder train and none val;" in error_of(config(f"data.root={small}"))


def test_split_without_a_class_folder(config: Callable[..., Config], small: Path) -> None:
    shutil.rmtree(small / "val")
    (small / "val").mkdir()
    assert error_of(config(f"data.root={small}")).startswith(f"{small / 'val'}: no class folder in it;")


def test_classes_that_differ(config: Callable[..., Config], small: Path) -> None:
    for number in range(8):
        shutil.copytree(small / "train" / "cat", small / "train" / f"x{number}")
    (small / "val" / "cat").rename(small / "val" / "bird")
    assert error_of(config(f"data.root={small}")) == (
        f"{small}: classes only in train: cat, x0, x1, x2, x3 and 4 more; classes only in val: bird; "
        "both need the same class folders"
    )
