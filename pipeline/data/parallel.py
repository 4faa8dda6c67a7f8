"""Work shared out among threads with the results in order, and one process at a time in a folder."""

import fcntl
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_AHEAD = 4  # items for each thread that are handed over before the first result is taken


def in_order(work: Callable[[T], R], items: Iterable[T], threads: int, name: str) -> Generator[R, None, None]:
    """Yield `work(item)` for all items in their order, computed by `threads` threads, a few items ahead of the consumer.

    Unlike `ThreadPoolExecutor.map` it does not take all items at once: memory does not grow with them, and after an error
    or an interruption little is left to wait for.

    Raises:
        Exception: what `work` raises.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads, name) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= _AHEAD * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def one_at_a_time(folder: Path, wait: Callable[[], object]) -> Iterator[None]:
    """Keep other processes that ask for the same of `folder` waiting; `wait` is called before waiting for one of them.

    File systems that lock nothing let all in.

    Raises:
        OSError: if the folder can't be opened.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            wait()
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError:  # not supported, as on some network file systems
            pass
        yield
    finally:
        os.close(fd)
