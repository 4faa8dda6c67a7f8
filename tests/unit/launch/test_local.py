"""The launcher runs real processes; their exit codes and errors come through."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def launch(trainer: Any, *overrides: str, nproc: int = 2) -> subprocess.CompletedProcess[str]:
    arguments = trainer.command(*overrides)[4:]
    command = [sys.executable, "-m", "launch", "local", *arguments, f"--nproc-per-node={nproc}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_two_processes_train_together(trainer: Any, tmp_path: Path) -> None:
    done = launch(trainer, "train.epochs=2st", "schedule.warmup=0st", f"run.dir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "2 x cpu" in done.stdout and done.stderr == ""
    assert (tmp_path / "run" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("override", "code", "part"),
    [
        ("batch.micro=0", 2, "batch.micro"),
        ("data.root=/nowhere", 2, "/nowhere"),
        ("optim.lr=1e30", 70, "not finite"),
        ("train.max_time=1e-9", 75, "stopped after step"),
    ],
)
def test_an_error_is_one_line_and_its_code_comes_through(trainer: Any, override: str, code: int, part: str) -> None:
    done = launch(trainer, "train.epochs=8st", "schedule.warmup=0st", override)
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("stopped after" if code == 75 else "error: ") and part in line
