import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.train import rundir
from pipeline.train.preemption import SIGNALS, StopFlag


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag_and_handlers_are_put_back(tmp_path: Path, number: signal.Signals) -> None:
    found = signal.getsignal(number)
    before = signal.default_int_handler
    signal.signal(number, before)  # under nohup, or in the background of a script, these tests inherit ignored signals
    with StopFlag(tmp_path) as flag:
        assert not flag.asked(1)
        os.kill(os.getpid(), number)
        assert flag.asked(1) and flag.reason == f"signal {number.name}"
        os.kill(os.getpid(), number)  # the same request, forwarded by a launcher
        assert flag.signal == number
    assert signal.getsignal(number) == before
    signal.signal(number, found)


def test_a_file_is_looked_for_every_tenth_step(tmp_path: Path) -> None:
    with StopFlag(tmp_path) as flag:
        (tmp_path / "STOP").touch()
        assert not flag.asked(9)
        assert flag.asked(10) and "STOP" in flag.reason


def test_the_time_limit(tmp_path: Path) -> None:
    with StopFlag(tmp_path, max_time_s=1e-9) as flag:
        assert not flag.asked(0)  # each start does a step
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


def test_only_a_stop_file_that_was_obeyed_goes(tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    rundir.tidy(tmp_path)  # placed while the run was being restarted
    flag = StopFlag(tmp_path)
    assert flag.asked(0)
    flag.obey()
    assert (tmp_path / "STOP").exists() and not StopFlag(tmp_path).asked(0)
    (tmp_path / "STOP").touch()
    assert StopFlag(tmp_path).asked(0)
    flag.obey()
    rundir.tidy(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_named_stop_is_no_request(tmp_path: Path) -> None:
    (tmp_path / "STOP").mkdir()
    rundir.tidy(tmp_path)
    assert not StopFlag(tmp_path).asked(0)


def test_a_request_that_came_before_is_taken_over(tmp_path: Path) -> None:
    found = signal.getsignal(signal.SIGTERM)
    with StopFlag():
        os.kill(os.getpid(), signal.SIGTERM)
        with StopFlag(tmp_path) as flag:
            assert flag.asked(1) and flag.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == found
