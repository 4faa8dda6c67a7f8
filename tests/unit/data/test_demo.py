from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.data import demo
from pipeline.data.index import open_index
from pipeline.errors import DataError


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "deep" / "digits"
    assert demo.write(root) == 1797
    return root


def test_every_scan_is_in_one_split_and_the_split_is_stratified(digits: Path, cache: Path) -> None:
    train, val = (open_index(digits, split, cache) for split in ("train", "val"))
    assert (len(train), len(val)) == (1437, 360)
    scans = [int(index.path(i).stem) for index in (train, val) for i in range(len(index))]
    labels = [int(label) for index in (train, val) for label in index.labels]
    target = load_digits().target
    assert sorted(scans) == list(range(1797))
    assert labels == target[scans].tolist()
    assert np.abs(np.bincount(val.labels) - np.bincount(target) / 5).max() <= 1


def test_images_are_the_scans_enlarged(digits: Path) -> None:
    path = digits / "train" / "3" / "0003.jpeg"
    with Image.open(path) as image:
        assert (image.size, image.mode, image.format) == ((40, 40), "RGB", "JPEG")
        shrunk = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), np.float64)
    scan = load_digits().images[3] * (255 / 16)
    assert np.corrcoef(shrunk.ravel(), scan.ravel())[0, 1] > 0.97


def test_a_complete_folder_is_left_alone(digits: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in digits.rglob("*")}
    assert demo.write(digits) == 1797
    assert {path: path.stat().st_mtime_ns for path in digits.rglob("*")} == before
    assert [entry.name for entry in digits.parent.iterdir()] == ["digits"]


def test_a_damaged_folder_is_written_anew(digits: Path) -> None:
    path = digits / "val" / "0" / "0000.jpeg"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert demo.write(digits) == 1797
    assert path.read_bytes() == whole
    (digits / "digits.json").write_text("{")
    path.unlink()
    demo.write(digits)
    assert path.read_bytes() == whole


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    assert demo.write(tmp_path / "digits") == 1797
    assert (tmp_path / "digits" / "digits.json").is_file()


def test_somebody_else_s_folder_is_refused(small: Path) -> None:
    with pytest.raises(DataError, match=f"{small}: exists and is not the demo data set; choose another folder"):
        demo.write(small)
    assert (small / "train" / "cat" / "0.jpg").is_file()


def test_a_place_that_can_t_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=f"{tmp_path}/file/digits: can't be written"):
        demo.write(tmp_path / "file" / "digits")
