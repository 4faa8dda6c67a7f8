"""Verifying: every kind of damage is caught, every odd but good image is not."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipeline.__main__ import cli
from pipeline.data.index import open_index
from pipeline.data.pack import Settings, pack
from pipeline.data.quarantine import read
from pipeline.data.verify import verify
from pipeline.errors import DataError

RNG = np.random.default_rng(3)


def noise(n: int) -> bytes:
    return RNG.integers(0, 256, n, dtype=np.uint8).tobytes()


def change(path: Path, at: float, data: bytes) -> None:
    whole = bytearray(path.read_bytes())
    start = int(len(whole) * at)
    whole[start : start + len(data)] = data
    path.write_bytes(whole)


def keep(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


# What is done to an image, the problem that is found, and whether it takes decoding.
DAMAGES: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    "cut in half": (lambda p: keep(p, p.stat().st_size // 2), "truncated", False),
    "two bytes short": (lambda p: keep(p, p.stat().st_size - 2), "truncated", False),
    "cut header": (lambda p: keep(p, 100), "cut header", False),
    "empty": (lambda p: p.write_bytes(b""), "empty", False),
    "text": (lambda p: p.write_text("<html>404 not found</html>"), "text", False),
    "gif": (lambda p: Image.new("P", (9, 9)).save(p, format="GIF"), "GIF", False),
    "noise": (lambda p: p.write_bytes(b"\0\1\2" + noise(900)), "no image", False),
    "broken header": (lambda p: p.write_bytes(b"\xff\xd8\xff\xe0\0\x04ab" + b"garbage" * 99), "broken header", False),
    "garbage inside": (lambda p: change(p, 0.5, noise(500)), "corrupt data", True),
    "a hole of zeros": (lambda p: change(p, 0.5, bytes(4096)), "corrupt data", True),
}


@pytest.fixture
def damaged(images: Path, tmp_path: Path) -> Path:
    """The data root of all good kinds, with an image of each kind of damage beside them."""
    root = tmp_path / "root"
    shutil.copytree(images, root)
    for name, (damage, _, _) in DAMAGES.items():
        path = root / "train" / "n01 first" / f"x {name}.jpg"
        shutil.copy(root / "train" / "n01 first" / "a plain.JPEG", path)
        damage(path)
    return root


def test_verify_accepts_every_odd_but_good_image(images: Path, cache: Path) -> None:
    for deep in (True, False):
        report = verify(images, cache, deep=deep, threads=2)
        assert report.bad == []
        expected = {"BMP": 4, "CMYK": 4, "EXIF-rotated": 4, "JPEG": 28, "PNG": 4, "WEBP": 4, "grey": 4, "progressive": 4}
        assert (report.images, report.kinds) == (40, expected)


@pytest.mark.parametrize("deep", [True, False])
def test_verify_finds_every_damage_and_nothing_else(deep: bool, damaged: Path, tmp_path: Path) -> None:
    report = verify(damaged, tmp_path / "cache", deep=deep, threads=2)
    found = {bad.path.stem.removeprefix("x "): bad.problem for bad in report.bad}
    assert found == {name: problem for name, (_, problem, needs_deep) in DAMAGES.items() if deep or not needs_deep}
    assert report.images == 50


def test_verify_notices_files_that_vanished(small: Path, tmp_path: Path) -> None:
    verify(small, tmp_path, deep=False, threads=1)
    folder = small / "val" / "cat"
    before = folder.stat().st_mtime_ns
    (folder / "1.jpg").unlink()
    import os

    os.utime(folder, ns=(before, before))  # as some network file systems show it for a while
    (bad,) = verify(small, tmp_path, deep=True, threads=1).bad
    assert (bad.path, bad.problem) == (folder / "1.jpg", "missing")


def test_verify_looks_into_packs(small: Path, tmp_path: Path) -> None:
    change(small / "train" / "dog" / "0.jpg", 0.6, bytes(300))
    (small / "train" / "dog" / "1.jpg").write_bytes(b"")
    pack(small, tmp_path / "out", Settings(), tmp_path, 1)
    found = {bad.entry.name: bad.problem for bad in verify(tmp_path / "out", None, deep=True, threads=2).bad}
    assert found == {"dog/0.jpg": "corrupt data", "dog/1.jpg": "left out"}


def test_verify_writes_reports_and_the_quarantine(damaged: Path, tmp_path: Path) -> None:
    out = [tmp_path / name for name in ("bad.tsv", "bad.csv", "bad.json")]
    arguments = ["data", "verify", str(damaged), "--cache", str(tmp_path), "--threads", "2"]
    reports = [f"{option}={path}" for option, path in zip(("--quarantine", "--csv", "--json"), out, strict=True)]
    assert CliRunner().invoke(cli, [*arguments, *reports]).exit_code == 1
    entries = read(out[0])
    assert len(entries) == len(DAMAGES)
    with out[1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = json.loads(out[2].read_text())
    assert [row["path"] for row in rows] == [row["path"] for row in found["bad"]]
    assert [damaged / "train" / entry.name for entry in entries] == [Path(row["path"]) for row in rows]
    assert sum(found["problems"].values()) == len(DAMAGES)
    text = CliRunner().invoke(cli, arguments)
    assert f"50 images, {len(DAMAGES)} bad" in text.output
    assert "x gif.jpg: GIF: not a JPEG" in text.output


def test_verify_of_good_images_exits_with_0(images: Path, cache: Path) -> None:
    result = CliRunner().invoke(cli, ["data", "verify", str(images), "--cache", str(cache), "--quick"])
    assert result.exit_code == 0
    assert result.output.splitlines()[-1].startswith("40 images, 0 bad")


def test_verify_says_why_no_image_can_be_read(small: Path, tmp_path: Path) -> None:
    for path in (small / "train").glob("*/*"):
        path.write_text("not found")
    report = verify(small, tmp_path, deep=True, threads=1)
    assert (report.images, report.problems()) == (12, {"text": 6})
    for _ in range(2):
        with pytest.raises(DataError, match="none of the 6 images can be read; `python -m pipeline data verify` says why"):
            open_index(small, "train", tmp_path)


def test_the_quarantine_goes_through_links_and_devices(damaged: Path, tmp_path: Path) -> None:
    (tmp_path / "link.tsv").symlink_to(tmp_path / "bad.tsv")
    arguments = ["data", "verify", str(damaged), "--cache", str(tmp_path), "--quick"]
    assert CliRunner().invoke(cli, [*arguments, "--quarantine", str(tmp_path / "link.tsv")]).exit_code == 1
    assert (tmp_path / "link.tsv").is_symlink()
    assert read(tmp_path / "bad.tsv")
