"""The commands `data index`, `data pack` and `data stage`; `data verify` is in test_verify."""

import json
from pathlib import Path

from click.testing import CliRunner, Result

from pipeline.__main__ import cli


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, ["data", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result


def test_an_index_a_pack_and_a_copy_on_the_command_line(small: Path, tmp_path: Path) -> None:
    (small / "train" / "dog" / "1.jpg").write_bytes(b"")
    cache = ("--cache", tmp_path / "cache")
    rows = json.loads(call("index", small, *cache, "--json").output)
    assert [(row["images"], row["classes"], row["bad"]) for row in rows] == [(6, 2, 1), (6, 2, 0)]
    assert "1 unreadable" in call("index", small, *cache).output.splitlines()[0]
    call("pack", small, tmp_path / "pack", *cache, "--short-side", "32", "--threads", "1", f"--json={tmp_path / 'p.json'}")
    rows = json.loads((tmp_path / "p.json").read_text())
    assert [(row["images"], row["bad"], row["shards"]) for row in rows] == [(6, 1, 1), (6, 0, 1)]
    assert "11 images in 2 shards are whole; 1 more left out as bad" in call("pack", tmp_path / "pack", "--check").output
    assert "24 files" in call("stage", tmp_path / "pack", tmp_path / "node").output
    assert json.loads(call("stage", tmp_path / "pack", tmp_path / "node", "--json").output)["copied"] == 0


def test_pack_without_a_place_to_write_to_is_a_usage_error(small: Path) -> None:
    result = CliRunner().invoke(cli, ["data", "pack", str(small)])
    assert (result.exit_code, "Missing argument 'OUT'" in result.output) == (2, True)
