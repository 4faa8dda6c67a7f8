import csv

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.errors import UsageError
from pipeline.train import pictures


def test_a_grid_shows_each_image_at_its_place(tmp_path):
    images = torch.zeros(10, 3, 100, 100, dtype=torch.uint8)
    images[9, 0] = 200
    pictures.grid(images, [f"class {i}\nand a long second line that does not fit" for i in range(10)], tmp_path / "grid.png")
    shown = np.asarray(Image.open(tmp_path / "grid.png"))
    assert shown.shape == (2 * 134, 8 * 104, 3)
    red = (shown == (200, 0, 0)).all(axis=2)
    assert red.sum() == 100 * 100 and red[134 + 2 : 134 + 102, 104 + 2 : 104 + 102].all()


def test_small_images_are_enlarged_without_blur(tmp_path):
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    pictures.grid(images, ["x"], tmp_path / "grid.png")
    shown = np.asarray(Image.open(tmp_path / "grid.png"))[2:98, 2:98]
    assert (shown[::3, ::3] == images[0].permute(1, 2, 0).numpy()).all()


def test_tables_and_plots(tmp_path):
    matrix = torch.tensor([[8, 2, 0], [0, 0, 0], [1, 3, 6]])
    pictures.per_class(matrix, ("cat", "none", "dog, big"), tmp_path / "per_class.csv")
    with (tmp_path / "per_class.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[1:] == [
        ["cat", "10", "0.800000", "none", "2"],
        ["none", "0", "", "", "0"],
        ["dog, big", "10", "0.600000", "none", "3"],
    ]
    pictures.confusion(matrix, ("cat", "none", "dog, big"), tmp_path / "confusion.png")
    pictures.confusion(torch.ones(40, 40, dtype=torch.int64), [str(i) for i in range(40)], tmp_path / "large.png")
    pictures.curves({"train/loss": ([1, 2], [2.0, float("nan")]), "val/top1": ([2], [0.5])}, tmp_path / "curves.png")
    for name in ("confusion.png", "large.png", "curves.png"):
        assert np.asarray(Image.open(tmp_path / name).convert("L")).std() > 5
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="can't write"):
        pictures.grid(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ["x"], tmp_path / "file" / "grid.png")
