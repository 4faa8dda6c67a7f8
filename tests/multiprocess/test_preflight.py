"""Preflight over several processes: one report, from rank 0, of what all of them found."""

import json
import subprocess
import sys
from pathlib import Path

LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3", "-m", "launch", "preflight"]


def preflight(*arguments: object) -> tuple[int, list[dict[str, str]], str]:
    command = [sys.executable, *LAUNCHER, "configs/demo.yaml", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_all_nodes_are_checked_and_the_exchange_is_measured(digits: Path, tmp_path: Path) -> None:
    code, rows, said = preflight(f"data.root={digits}", f"run.root={tmp_path / 'runs'}")
    found = {row["check"]: row for row in rows}
    assert code == 0, said
    assert "1 node (" in found["nodes"]["said"] and found["data"]["state"] == "ok"
    assert "64.0 MiB over 3 processes in" in found["all-reduce"]["said"] and "GB/s" in found["all-reduce"]["said"]
    assert list(tmp_path.iterdir()) == []


def test_a_node_without_data_and_a_place_for_runs_is_named(tmp_path: Path) -> None:
    code, rows, said = preflight(f"data.root={tmp_path}", "run.root=/proc/self")
    assert "launch/fabric.py" not in said and "Signal 6" not in said, said
    (node,) = [row for row in rows if row["check"].startswith("node ")]
    assert code == 1 and node["state"] == "failed" and "no train and no val folder" in node["said"]
    assert "can't write there" in node["said"]
