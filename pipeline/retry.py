"""Trying again with backoff what fails for a reason that may pass: a full disk, a lock of a dead host, a busy scheduler."""

import errno
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.ENOLCK}


def may_pass(error: BaseException | None) -> bool:
    """Return whether an error, or what caused it, is one of a disk or a file server that may recover by itself."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _PASSING:
            return True
        error = error.__cause__ or error.__context__
    return False


def retry(
    work: Callable[[], T],
    wait_s: float,
    passing: Callable[[Exception], bool] = may_pass,
    say: Callable[[Exception], None] = lambda error: None,
) -> T:
    """Return what `work` returns; as long as it raises what may pass, call it again for `wait_s` seconds, ever more rarely.

    `say` is told the first error, before the first pause.

    Raises:
        Exception: what `work` raises that is not `passing`, or its last error once `wait_s` is over.
    """
    deadline, pause_s, told = time.monotonic() + wait_s, _FIRST_PAUSE_S, False
    while True:
        try:
            return work()
        except Exception as error:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not passing(error):
                raise
            if not told:
                say(error)
                told = True
        time.sleep(min(pause_s, left_s))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
