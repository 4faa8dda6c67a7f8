"""Locks between processes that the kernel releases when their holder dies, however it dies.

Not here: what a lock protects.
"""

import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import Self

from pipeline.errors import UsageError

RUN_LOCK = "run.lock"
_TRIES = 20
_PAUSE_S = 0.05


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

    def __init__(self, run_dir: Path) -> None:
        """Take no lock yet; `acquire` or a `with` block does."""
        self.run_dir = run_dir
        self._lock = FileLock(run_dir / RUN_LOCK)

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            UsageError: if another process has it, or the directory can't be written.
        """
        try:
            # A listing looks at the lock for a moment: one refusal doesn't mean that somebody trains.
            for _ in range(_TRIES):
                if self._lock.acquire(wait=False):
                    return
                time.sleep(_PAUSE_S)
        except OSError as error:
            raise UsageError(
                f"run directory {self.run_dir}: can't lock it: {error.strerror}; choose another run.dir"
            ) from error
        raise UsageError(
            f"run directory {self.run_dir} is in use by another process ({self._lock.holder()}); "
            "wait for it, stop it, or choose another run.dir"
        )

    def release(self) -> None:
        """Give the lock back, if it was taken."""
        self._lock.release()

    def __enter__(self) -> Self:
        """Take the lock.

        Raises:
            UsageError: as `acquire` does.
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
