"""The measurement of large indexes, on small ones."""

import json
from pathlib import Path

import numpy as np
from click.testing import CliRunner

from pipeline.__main__ import cli
from pipeline.bench.scale import write_synthetic
from pipeline.data.index import open_index


def test_a_synthetic_index_is_one_of_a_pack(tmp_path: Path) -> None:
    write_synthetic(tmp_path, 2500)
    index = open_index(tmp_path, "train", None)
    assert (len(index), index.name(1234), int(index.labels[1234]), len(index.classes)) == (2500, "1234", 234, 1000)
    assert index.read(0) == index.read(2499)
    assert index.problem(2499) is None
    assert isinstance(index.labels.base, np.memmap)


def test_both_kinds_of_index_are_measured(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = ["bench", "scale-data", "--files", "300", "--entries", "20000", "--dir", str(tmp_path), f"--json={out}"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    rows = json.loads(out.read_text())
    assert [(row["images"], row["kind"]) for row in rows] == [(300, "files"), (20000, "synthetic")]
    assert all(row["open_s"] > 0 and row["first_batch_s"] > 0 and row["disk_mb"] > 0 for row in rows)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
