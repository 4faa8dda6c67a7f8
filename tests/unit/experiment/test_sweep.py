"""The runs of an experiment are processes: a signal reaches them, and the same command goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


def test_a_signal_reaches_the_runs_which_save(trainer: Any, tmp_path: Path) -> None:
    file, out = tmp_path / "few.yaml", tmp_path / "out"
    file.write_text(f"config: {ROOT / 'configs/base.yaml'}\nruns:\n  a: []\n  b: [seed=1]\n")
    command = trainer.command("train.epochs=99999st", "train.log_every=1")
    overrides = command[command.index("configs/base.yaml") + 1 :]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "experiment", str(file), f"--out={out}", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    trainer.started.append(process)
    logs = [out / "a.log", out / "b.log"]
    while not any(log.is_file() and "loss" in log.read_text() for log in logs):
        assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "the same command goes on" in said and ": stopped" in said
    trained = [log for log in logs if log.is_file() and "loss" in log.read_text()]
    assert trained and all(list((log.with_suffix("") / "checkpoints").glob("step-*.pt")) for log in trained)
