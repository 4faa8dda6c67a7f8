"""Failures that would come again: launchers end with their exit code, and start nothing in vain."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

FEW = ("train.epochs=8st", "schedule.warmup=0st")
EXPLODES = ("optim.lr=1e30", "optim.lr_per=null")


def statuses(run_dir: Path) -> list[str]:
    lines = map(json.loads, (run_dir / "journal.jsonl").read_text().splitlines())
    return [line["status"] for line in lines if line["kind"] == "status"]


def launch(trainer: Any, run_dir: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = trainer.command(*FEW, f"run.dir={run_dir}", *overrides)
    how = ["-m", "launch", "torchrun", *command[command.index("train") + 1 :], "--nproc-per-node=2"]
    return subprocess.run([sys.executable, *how], capture_output=True, text=True, check=False, timeout=120)


def test_a_loss_that_is_not_finite_is_not_repeated_and_the_user_may_try_again(trainer: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    for starts in (1, 2):
        done = launch(trainer, run_dir, *EXPLODES)
        assert done.returncode == 70, done.stderr
        (line,) = done.stderr.splitlines()
        assert "not finite" in line
        assert statuses(run_dir) == ["RUNNING", "FAILED"] * starts


def test_torchrun_itself_finds_at_the_restart_that_nothing_can_be_done(trainer: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = trainer.command(*FEW, *EXPLODES, f"run.dir={run_dir}", world=2)
    command.insert(command.index("--standalone"), "--max-restarts=1")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1 and "not started again after the failure at step" in done.stderr, done.stderr
    assert statuses(run_dir) == ["RUNNING", "FAILED"]


OUT_OF_MEMORY = """
import os
if os.environ.get("RANK") == "1":
    import torch
    from pipeline.train import engine
    step = engine.train_step
    def failing(state, stream):
        if state.step == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(state, stream)
    engine.train_step = failing
"""


def test_a_rank_that_fails_alone_decides_for_all(trainer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(OUT_OF_MEMORY)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    done = launch(trainer, tmp_path / "run")
    assert done.returncode == 70, done.stderr
    assert statuses(tmp_path / "run") == ["RUNNING", "FAILED"]
    assert "out of memory at step 3" in done.stderr and "lower batch.micro (8)" in done.stderr, done.stderr
    assert "not started again after the failure at step 3 (rank 1)" in done.stderr
