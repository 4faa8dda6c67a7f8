"""A rank that answers no more is named, within the time that the configuration allows."""

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

ENDLESS = (
    "train.epochs=99999st",
    "schedule.warmup=0st",
    "eval.every=99999st",
    "train.checkpoint_every=5st",
    "train.log_every=1",
)


def workers(process: Any) -> dict[int, int]:
    """The process id of each rank below a torchrun."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            parent = re.search(r"^PPid:\s+(\d+)", path.read_text(), re.M)
            environment = (path.parent / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        rank = [word.removeprefix(b"RANK=") for word in environment if word.startswith(b"RANK=")]
        if parent and int(parent[1]) == process.pid and rank:
            found[int(rank[0])] = int(path.parent.name)
    return found


@pytest.mark.parametrize(("number", "timeout_s"), [(signal.SIGSTOP, 4), (signal.SIGKILL, 300)])
def test_a_silent_rank_is_named(trainer: Any, tmp_path: Path, number: signal.Signals, timeout_s: int) -> None:
    process = trainer.start(*ENDLESS, f"dist.timeout_s={timeout_s}", f"run.dir={tmp_path / 'run'}", world=2)
    trainer.until(process, lambda line: "step" in line and "loss" in line)
    silent = workers(process)[1]
    os.kill(silent, number)
    output = trainer.until(process, lambda line: line.startswith("error: "))
    if number == signal.SIGSTOP:
        os.kill(silent, signal.SIGKILL)
    process.communicate(timeout=60)
    assert "rank 1 (host " in output and "answered no more" in output and "last checkpoint is intact" in output
    (last,) = [line for line in (tmp_path / "run" / "journal.jsonl").read_text().splitlines() if '"status"' in line][-1:]
    assert json.loads(last)["status"] == "FAILED" and "rank 1" in json.loads(last)["reason"]
