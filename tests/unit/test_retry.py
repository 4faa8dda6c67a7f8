"""What may pass is tried again until its time is over; what can't pass is raised at once."""

import errno
from collections.abc import Callable

import pytest

from pipeline.retry import may_pass, retry


class Flaky:
    def __init__(self, failures: int, error: Exception) -> None:
        self.calls, self.failures, self.error = 0, failures, error

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return self.calls


def test_tries_again_until_it_works_and_tells_once() -> None:
    told: list[Exception] = []
    work = Flaky(3, OSError(errno.ENOSPC, "full"))
    assert retry(work, 10, say=told.append) == 4
    assert told == [work.error]


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "denied"), ValueError("wrong"), RuntimeError("no reason")])
def test_raises_at_once_what_cannot_pass(error: Exception) -> None:
    work = Flaky(1, error)
    with pytest.raises(type(error)):
        retry(work, 10)
    assert work.calls == 1


def test_gives_up_when_the_time_is_over() -> None:
    work = Flaky(1000, OSError(errno.EIO, "broken"))
    with pytest.raises(OSError, match="broken"):
        retry(work, 0.3)
    assert 2 <= work.calls < 10


def test_calls_once_without_time() -> None:
    work = Flaky(1, OSError(errno.EIO, "broken"))
    with pytest.raises(OSError, match="broken"):
        retry(work, 0)
    assert work.calls == 1


def test_looks_at_what_caused_an_error() -> None:
    def fail(first: Callable[[], None]) -> Exception:
        try:
            first()
        except OSError as cause:
            error = RuntimeError("wrapped")
            error.__cause__ = cause
            return error
        raise AssertionError

    def full() -> None:
        raise OSError(errno.ENOSPC, "full")

    assert may_pass(fail(full))
    assert not may_pass(RuntimeError("alone"))
