import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.train.preemption import SIGNALS, StopFlag


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag_and_handlers_are_put_back(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopFlag(tmp_path) as flag:
        assert not flag.asked(1)
        os.kill(os.getpid(), number)
        # Any thread may take the signal, and the handler runs in the main one soon after.
        deadline = time.monotonic() + 10
        while not flag.asked(1) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert flag.reason == f"signal {number.name}"
        os.kill(os.getpid(), number)  # the same request, forwarded by a launcher
        assert flag.signal == number
    assert signal.getsignal(number) == before


def test_a_file_is_looked_for_every_tenth_step(tmp_path: Path) -> None:
    with StopFlag(tmp_path) as flag:
        (tmp_path / "STOP").touch()
        assert not flag.asked(9)
        assert flag.asked(10) and "STOP" in flag.reason


def test_the_time_limit(tmp_path: Path) -> None:
    with StopFlag(tmp_path, max_time_s=1e-9) as flag:
        assert flag.asked(1) and "max_time" in flag.reason
    with StopFlag(tmp_path, max_time_s=1e9) as flag:
        assert not flag.asked(1)


def test_a_second_signal_after_a_while_ends_the_process_at_once(tmp_path: Path) -> None:
    code = f"""
import os, signal, pipeline.train.preemption as p, pathlib
p._SAME_REQUEST_S = 0.0
with p.StopFlag(pathlib.Path({str(tmp_path)!r})) as flag:
    os.kill(os.getpid(), signal.SIGTERM)
    assert flag.asked(1)
    os.kill(os.getpid(), signal.SIGUSR1)  # another signal is no second request
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGTERM and "still here" not in done.stdout
