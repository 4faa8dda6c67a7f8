"""Stops before the first step, and full disks: one line, one exit code, on every rank."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FEW = ("train.epochs=4st", "schedule.warmup=0st", "train.log_every=1")
GATE = """
import os, time
def wait(name):
    open(os.environ["GATE"] + name, "w").close()
    while not os.path.exists(os.environ["GATE"] + "open"):
        time.sleep(0.01)
"""
IN_INDEX = (
    GATE
    + """
import pipeline.data.index as i
b = i.build
i.build = lambda *a, **k: wait("index") or b(*a, **k)
"""
)
IN_IMPORTS = (
    GATE
    + """
import sys
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch" and not sys.argv[0].endswith("pytest"):
            wait("imports")
sys.meta_path.insert(0, Slow())
"""
)


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have processes wait at a place until a file is there."""

    def at(code: str) -> Path:
        (tmp_path / "site").mkdir()
        (tmp_path / "site" / "sitecustomize.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{Path.cwd()}")
        monkeypatch.setenv("GATE", f"{tmp_path}/gate.")
        return tmp_path

    return at


def await_file(process: subprocess.Popen[str], path: Path) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]


def stopped(process: subprocess.Popen[str], output: str) -> None:
    assert process.returncode == 75, output
    assert len(re.findall("^(?:\\[.*\\] )?stopped ", output, re.MULTILINE)) == 1, output
    assert "Traceback" not in output and "KeyboardInterrupt" not in output and "error" not in output


@pytest.mark.parametrize("numbers", [(signal.SIGTERM,), (signal.SIGINT, signal.SIGINT), (signal.SIGUSR1,)])
def test_a_stop_while_indexing_does_not_wait_for_the_index(
    trainer: Any, gate: Any, numbers: tuple[signal.Signals, ...]
) -> None:
    folder = gate(IN_INDEX)
    process = trainer.start(*FEW, f"data.cache={folder / 'cache'}", f"run.dir={folder / 'run'}")
    await_file(process, folder / "gate.index")
    for number in numbers:
        process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    stopped(process, output)
    assert "before training began; nothing had to be saved" in output and not (folder / "run").exists()


def test_a_stop_while_importing_is_obeyed_before_the_first_step(trainer: Any, gate: Any) -> None:
    folder = gate(IN_IMPORTS)
    process = trainer.start(*FEW, f"run.dir={folder / 'run'}")
    await_file(process, folder / "gate.imports")
    process.send_signal(signal.SIGUSR1)
    (folder / "gate.open").touch()
    output, _ = process.communicate(timeout=60)
    stopped(process, output)


def launched(trainer: Any, *overrides: str) -> subprocess.Popen[str]:
    arguments = trainer.command(*FEW, *overrides)[4:]
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", "local", *arguments, "--nproc-per-node=2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    trainer.started.append(process)
    return process


def test_the_launcher_hears_a_signal_before_it_has_imported_torch(trainer: Any, gate: Any) -> None:
    folder = gate(IN_IMPORTS)
    process = launched(trainer, f"run.dir={folder / 'run'}")
    await_file(process, folder / "gate.imports")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    stopped(process, output)


def test_all_ranks_leave_alike_while_the_first_indexes(trainer: Any, gate: Any) -> None:
    folder = gate(IN_INDEX)
    process = launched(trainer, f"data.cache={folder / 'cache'}", f"run.dir={folder / 'run'}")
    await_file(process, folder / "gate.index")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    stopped(process, output)


def test_a_rank_whose_peer_does_not_come_can_be_stopped(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    process = trainer.start(*FEW)
    while True:  # until it listens
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    stopped(process, output)


FULL_DISK = """
import errno, os
sync = os.fsync
def full(fd):
    if "/.step-" in os.readlink(f"/proc/self/fd/{fd}"):
        raise OSError(errno.ENOSPC, "No space left on device")
    sync(fd)
os.fsync = full
"""
FULL_JOURNAL = """
import errno, pipeline.track.journal as j
write = j.Journal._write
def full(self, line):
    if b'"step": 3' in line:
        raise OSError(errno.ENOSPC, "No space left on device")
    write(self, line)
j.Journal._write = full
"""


@pytest.mark.parametrize(("code", "part", "left"), [(FULL_DISK, "step-000000002.pt", 0), (FULL_JOURNAL, "journal.jsonl", 1)])
def test_on_a_full_disk_all_ranks_end_alike(trainer: Any, gate: Any, code: str, part: str, left: int) -> None:
    folder = gate(code)
    process = trainer.start(*FEW, "train.checkpoint_every=2st", "train.retry_s=0.2", f"run.dir={folder / 'run'}", world=2)
    output, _ = process.communicate(timeout=100)
    assert set(re.findall(r"exitcode\s*: (\d+)", output)) == {"69"}, output
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert part in line and "No space left on device" in line
    assert len(list((folder / "run" / "checkpoints").iterdir())) == left
