import errno
import fcntl
import os
import signal
import socket
import threading
import time

import pytest

from pipeline.errors import TransientError, UsageError
from pipeline.track.lock import FileLock, RunLock, in_use

HOLD = """
import sys
from pathlib import Path
from pipeline.track.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
sys.stdin.readline()
"""


def test_another_process_is_refused_by_name_until_the_holder_lets_go(tmp_path, child):
    holder = child(HOLD, tmp_path)
    assert holder.stdout.readline() == "held\n"
    assert in_use(tmp_path)
    told = rf"run directory {tmp_path} is in use by another process \(pid {holder.pid} on {socket.gethostname()}\); wait"
    with pytest.raises(UsageError, match=told):
        RunLock(tmp_path).acquire()
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "released\n"
    assert not in_use(tmp_path)
    with RunLock(tmp_path):
        assert f"pid {os.getpid()} " in FileLock(tmp_path / "run.lock").holder()


def test_a_killed_holder_leaves_the_directory_free(tmp_path, child):
    holder = child(HOLD, tmp_path)
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not in_use(tmp_path)
    with RunLock(tmp_path):
        assert in_use(tmp_path)


def test_looking_neither_takes_the_lock_nor_makes_a_file(tmp_path):
    assert not in_use(tmp_path)
    assert list(tmp_path.iterdir()) == []
    lock = RunLock(tmp_path)
    lock.acquire()
    assert in_use(tmp_path)
    assert in_use(tmp_path)
    lock.release()
    lock.release()
    assert not in_use(tmp_path)


def test_a_momentary_look_does_not_refuse_a_training(tmp_path, monkeypatch):
    (tmp_path / "run.lock").touch()
    looking = os.open(tmp_path / "run.lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr("pipeline.retry.time.sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
    with RunLock(tmp_path):
        os.close(looking)


def test_a_directory_that_cant_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="file: can't lock it: Not a directory; choose another run.dir"):
        RunLock(tmp_path / "file").acquire()
    assert FileLock(tmp_path / "file").holder() == "pid unknown"


def test_the_lock_of_a_dead_host_is_waited_for(tmp_path):
    lease = FileLock(tmp_path / "run.lock")  # as a file server keeps it for a client that is gone
    assert lease.acquire(wait=False)
    (tmp_path / "run.lock").write_text('{"pid": 1, "host": "elsewhere"}')
    threading.Timer(1.5, lease.release).start()
    with RunLock(tmp_path, wait_s=30):
        assert FileLock(tmp_path / "run.lock").holder() == f"pid {os.getpid()} on {socket.gethostname()}"


@pytest.mark.parametrize(
    "holder", ['{"pid": 1, "host": "elsewhere"}', f'{{"pid": 99999999, "host": "{socket.gethostname()}"}}', "{"]
)
def test_a_lock_that_stays_is_trouble_that_may_pass(tmp_path, holder):
    lease = FileLock(tmp_path / "run.lock")
    assert lease.acquire(wait=False)
    (tmp_path / "run.lock").write_text(holder)
    with pytest.raises(TransientError, match=r"is locked by pid .*, after 0.3 s \(train.retry_s\)"):
        RunLock(tmp_path, wait_s=0.3).acquire()
    lease.release()


def test_a_holder_that_lives_on_this_host_is_named_at_once(tmp_path, child):
    holder = child(HOLD, tmp_path)
    assert holder.stdout.readline() == "held\n"
    start = time.monotonic()
    with pytest.raises(UsageError, match=f"pid {holder.pid} "):
        RunLock(tmp_path, wait_s=60).acquire()
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(("number", "kind"), [(errno.ESTALE, TransientError), (errno.EACCES, UsageError)])
def test_a_file_server_that_fails_is_no_bad_input(tmp_path, monkeypatch, number, kind):
    def failing(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pipeline.track.lock.fcntl.flock", failing)
    with pytest.raises(kind, match="can't lock it"):
        RunLock(tmp_path, wait_s=0.2).acquire()
