"""Locks between processes that the kernel releases when their holder dies, however it dies."""

import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pipeline.errors import TransientError, UsageError
from pipeline.retry import may_pass, retry

RUN_LOCK = "run.lock"


def _opened(pid: int) -> Iterator[Path]:
    """Yield the files that a process has open, those that are still there."""
    return (fd for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.exists())


class FileLock:
    """An exclusive flock on a file, which is made if missing and left in place; the file says who holds it."""

    def __init__(self, path: Path) -> None:
        """Take no lock yet."""
        self.path = path
        self._fd: int | None = None

    def acquire(self, *, wait: bool) -> bool:
        """Take the lock; with `wait`, however long it takes. Return whether it was taken.

        Raises:
            OSError: if the file can't be written or its file system has no locks.
        """
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            os.ftruncate(fd, 0)
            os.write(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        except BlockingIOError:
            os.close(fd)
            return False
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        return True

    def release(self) -> None:
        """Give the lock back, if it was taken."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def holder(self) -> str:
        """Return `pid 123 on HOST` of the last process that took the lock, as far as the file says."""
        try:
            found = json.loads(self.path.read_text())
            return f"pid {found['pid']} on {found['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "pid unknown"

    def holder_lives_here(self) -> bool:
        """Return whether the process that the file names runs on this host and has the file open."""
        try:
            found = json.loads(self.path.read_text())
            if found["host"] != socket.gethostname():
                return False
            return any(fd.samefile(self.path) for fd in _opened(int(found["pid"])))
        except PermissionError:  # another user's process lives, and its files can't be looked at
            return True
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def held(self) -> bool:
        """Return whether any process holds the lock now.

        Raises:
            OSError: if a file that exists can't be opened.
        """
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False


class RunLock:
    """The right to write in a run directory: held by rank 0 for as long as it lives."""

    def __init__(self, run_dir: Path, wait_s: float = 1.0) -> None:
        """Take no lock yet; `acquire` or a `with` block does, and waits `wait_s` for a holder that is not seen to live."""
        self.run_dir = run_dir
        self._wait_s = wait_s
        self._lock = FileLock(run_dir / RUN_LOCK)

    def acquire(self) -> None:
        """Take the lock.

        A file server keeps the lock of a host that died for a while, and a listing looks at a lock for a moment: both pass.

        Raises:
            UsageError: if a process on this host has it, or the directory can't be written.
            TransientError: if it is still locked after `wait_s`, or the file server fails.
        """
        try:
            retry(self._take, self._wait_s, say=self._warn)
        except BlockingIOError as error:
            raise TransientError(
                f"run directory {self.run_dir} is locked by {self._lock.holder()}, after {self._wait_s:g} s (train.retry_s); "
                "end that process if it lives, wait until the file server gives the lock up, or choose another run.dir"
            ) from error
        except OSError as error:
            kind = TransientError if may_pass(error) else UsageError
            raise kind(f"run directory {self.run_dir}: can't lock it: {error.strerror}; choose another run.dir") from error

    def _take(self) -> None:
        """Take the lock now.

        Raises:
            UsageError: if a process on this host has it.
            BlockingIOError: if it is locked otherwise.
        """
        if self._lock.acquire(wait=False):
            return
        if self._lock.holder_lives_here():
            raise UsageError(
                f"run directory {self.run_dir} is in use by another process ({self._lock.holder()}); "
                "wait for it, stop it, or choose another run.dir"
            )
        raise BlockingIOError(errno.EAGAIN, "locked")

    def _warn(self, error: Exception) -> None:
        if self._wait_s > 1:
            said = f"locked by {self._lock.holder()}" if isinstance(error, BlockingIOError) else f"can't lock it: {error}"
            print(f"warning: run directory {self.run_dir}: {said}; trying for {self._wait_s:g} s", file=sys.stderr, flush=True)

    def release(self) -> None:
        """Give the lock back, if it was taken."""
        self._lock.release()

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            PipelineError: as `acquire` does.
        """
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lock back."""
        self.release()


def in_use(run_dir: Path) -> bool:
    """Return whether a living process trains in a run directory.

    Raises:
        OSError: if the lock's file can't be opened.
    """
    return FileLock(run_dir / RUN_LOCK).held()
