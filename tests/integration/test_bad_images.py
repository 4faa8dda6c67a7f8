"""Whole runs over data with a few bad images in it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.quarantine import read

FEW = ("train.epochs=1", "schedule.warmup=0ep", "train.log_every=10", "data.max_bad_fraction=0.01")


@pytest.fixture
def bad_digits(digits: Path, tmp_path: Path) -> Path:
    """The digits with two broken files for training and one for validation."""
    root = tmp_path / "digits"
    shutil.copytree(digits, root)
    for split, label, number in (("train", "3", 5), ("train", "8", 7), ("val", "0", 2)):
        path = sorted((root / split / label).iterdir())[number]
        path.write_bytes(path.read_bytes()[:-300])
    return root


def metrics(run_dir: Path) -> dict[str, float]:
    """Return the last value of each metric in a run's journal."""
    last: dict[str, float] = {}
    for line in (run_dir / "journal.jsonl").read_text().splitlines():
        last |= json.loads(line).get("values") or {}
    return last


def test_bad_images_are_replaced_counted_and_remembered_and_change_nothing_between_worlds(
    trainer: Any, bad_digits: Path, tmp_path: Path
) -> None:
    weights = []
    for world in (1, 2):
        run_dir = tmp_path / f"world {world}"
        output = trainer.run(*FEW, f"data.root={bad_digits}", f"run.dir={run_dir}", "train.precision=fp64", world=world)
        assert output.count("bad image, left out") == 3
        assert "359 images" in output  # one of 360 is bad
        assert sorted(entry.split for entry in read(run_dir / "quarantine.tsv")) == ["train", "train", "val"]
        weights.append(metrics(run_dir))
    assert weights[0]["data/bad_images"] == 2  # at the last step; the bad one in the validation set came up after it
    assert weights[0]["val/loss"] == pytest.approx(weights[1]["val/loss"], rel=1e-9)


def test_too_many_bad_images_stop_every_rank_with_their_names(trainer: Any, bad_digits: Path, tmp_path: Path) -> None:
    output = trainer.run(
        *FEW, f"data.root={bad_digits}", f"run.dir={tmp_path / 'run'}", "data.max_bad_fraction=0", world=2, expect=1
    )
    assert "error: " in output
    assert "replace or remove" in output
