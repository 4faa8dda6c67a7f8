"""Work in threads: in order, bounded, and soon over after an error."""

import threading
import time
from itertools import count

import pytest

from pipeline.data.parallel import in_order


def test_results_come_in_the_order_of_the_items() -> None:
    assert list(in_order(lambda n: (time.sleep(n % 3 / 1000), n)[1], range(50), 3, "test")) == list(range(50))


def test_items_are_taken_only_as_results_are() -> None:
    taken = []
    results = in_order(lambda n: n, (taken.append(n) or n for n in count()), 2, "test")
    assert [next(results) for _ in range(5)] == list(range(5))
    results.close()
    assert len(taken) <= 5 + 8


def test_an_error_does_not_wait_for_what_has_not_begun() -> None:
    begun = []

    def work(n: int) -> None:
        begun.append(n)
        if n == 0:
            raise OSError("full")
        time.sleep(0.01)

    with pytest.raises(OSError, match="full"):
        list(in_order(work, range(10_000), 2, "test"))
    assert len(begun) <= 9
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("test")]
