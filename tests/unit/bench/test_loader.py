"""The comparison of loaders, with real contestants in processes of their own."""

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.__main__ import cli
from pipeline.bench import loader
from pipeline.bench.photos import make_photo, write_photos
from pipeline.errors import UsageError


def test_loaders_are_measured_in_turn_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = loader.find_spec
    monkeypatch.setattr(loader, "find_spec", lambda name: None if name == "webdataset" else found(name))
    arguments = ["bench", "loader", "--images", "128", "--rounds", "1", "--workers", "1", "--dir", str(tmp_path)]
    files = [f"--json={tmp_path / 'a.json'}", f"--csv={tmp_path / 'a.csv'}", f"--png={tmp_path / 'a.png'}"]
    result = CliRunner().invoke(cli, [*arguments, "--only", "torchvision-pil,webdataset,ours-pack-352", *files])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "a.json").read_text())
    assert [row["name"] for row in rows] == ["torchvision-pil", "ours-pack-352"]
    assert rows[0]["ratio"] == 1.0
    assert rows[1]["ratio"] == pytest.approx(rows[1]["cpu_ms_per_image"] / rows[0]["cpu_ms_per_image"])
    assert all(row["cpu_ms_per_image"] > 0 and row["images_per_s"] > 0 and row["peak_rss_mb"] > 100 for row in rows)
    with (tmp_path / "a.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["torchvision-pil", "ours-pack-352"]
    with Image.open(tmp_path / "a.png") as chart:
        assert chart.format == "PNG"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json", "a.png"]


def test_a_skipped_loader_is_named() -> None:
    text = loader.table([loader.Row("timm", 4.0, 250.0, 1.0, 900.0)], {"webdataset": "webdataset is not installed"})
    assert text.splitlines()[1].split() == ["timm", "4.00", "250", "1.00", "900"]
    assert text.splitlines()[2].split(maxsplit=1) == ["webdataset", "skipped: webdataset is not installed"]


def test_unknown_loaders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no loader nosuch; there are torchvision-pil"):
        loader.measure(loader.Request(names=("nosuch",)), tmp_path)


def test_photos_are_the_same_every_time_and_of_a_photograph_s_size(tmp_path: Path) -> None:
    assert make_photo(3) == make_photo(3)
    assert 60_000 < len(make_photo(0)) < 150_000
    write_photos(tmp_path / "root", 25, classes=4)
    assert len(list((tmp_path / "root" / "train").glob("*/*.jpg"))) == 25
    assert len(list((tmp_path / "root" / "val").glob("*/*.jpg"))) == 4
