"""Too many bad images: a run of any world is stopped at the same step, with one line and one code."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.data.quarantine import read

RUN = ("train.epochs=1", "schedule.warmup=0ep", "train.log_every=1", "train.checkpoint_every=5", "data.executor=reference")


@pytest.fixture
def torn(digits: Path, tmp_path: Path) -> Path:
    """The digits with every twelfth training image torn."""
    root = tmp_path / "digits"
    shutil.copytree(digits, root)
    for path in sorted((root / "train").glob("*/*"))[::12]:
        path.write_bytes(path.read_bytes()[:-300])
    return root


def steps(output: str) -> list[int]:
    return [int(step) for step in re.findall(r"step +(\d+)/", output)]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_bad_images_are_counted_over_all_ranks(world: int, trainer: Any, torn: Path, tmp_path: Path) -> None:
    """120 of 1,437 are bad, and 30 may be: no rank of several meets that many."""
    run_dir = tmp_path / "run"
    where = (f"data.root={torn}", f"run.dir={run_dir}")
    output = trainer.run(*RUN, *where, "data.max_bad_fraction=0.0209", world=world, expect=1 if world > 1 else 2)
    (line,) = [line for line in output.splitlines() if "images of 1,437 can't be read" in line]
    assert line.count("torn") == 0 and line.count(".jpeg: ") == 5 and str(run_dir / "quarantine.tsv") in line
    assert "raise data.max_bad_fraction" in line
    assert "answered no more" not in output and output.count("pipeline/train/") == 0  # no traceback of ours
    if world > 1:
        assert set(re.findall(r"exitcode *: (-?\d+)", output)) == {"2"}
    noted = {entry.sample for entry in read(run_dir / "quarantine.tsv")}
    assert (len(noted), max(steps(output))) == (34, 9)
