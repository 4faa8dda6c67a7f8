"""The roll call after a collective has failed: which ranks are left, and which answer no more."""

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

_ANSWER_S = {True: 10.0, False: 3.0}
"""Seconds that a roll call waits for the others: after a time-out, and after a connection that was closed."""


@dataclass(frozen=True)
class Roll:
    """One rank of `size`, the store that all of them share, and its address HOST:PORT."""

    rank: int
    size: int
    store: Any
    address: str


def sign_in(roll: Roll) -> None:
    """Leave the name of this rank's host in the store."""
    roll.store.set(_host_key(roll.rank), socket.gethostname())


def call(roll: Roll, error: RuntimeError, leave: Callable[[], None]) -> str:
    """Ask who is left, and return what happened to whom; empty on all ranks that are left but the first.

    Whoever failed says so in the store, and leaves the group (`leave`): that wakes those who wait for this rank.
    """
    text = str(error).lower()
    patience_s = _ANSWER_S["timed out" in text or "timeout" in text]
    answers: dict[int, str] = {}
    # In a thread: where the network is cut, the store never answers.
    asking = threading.Thread(target=_ask, args=(roll, patience_s, answers), daemon=True)
    asking.start()
    leave()
    asking.join(patience_s + 5)
    what = str(error).splitlines()[0][:160]
    if not answers:
        return (
            f"rank {roll.rank} (host {socket.gethostname()}) lost the others and can't reach {roll.address}: "
            f"the network between them is cut, or the host there is gone ({what}); the last checkpoint is intact"
        )
    if any(not host for rank, host in answers.items() if rank < roll.rank):
        return ""
    named = ", ".join(f"rank {rank} (host {host})" for rank, host in answers.items() if host) or "no rank"
    return (
        f"{named} answered no more: killed, stuck, or cut off ({what}); look at that host; "
        "dist.timeout_s is how long a silent rank is waited for; the last checkpoint is intact"
    )


def _host_key(rank: int) -> str:
    return f"host/{rank}"


def _ask(roll: Roll, patience_s: float, answers: dict[int, str]) -> None:
    """Fill `answers` with an empty text for each rank that says that it is left, and with its host for the others."""
    store, deadline = roll.store, time.monotonic() + patience_s
    try:
        store.set_timeout(timedelta(seconds=patience_s))
        store.set(f"left/{roll.rank}", "")
        missing = set(range(roll.size)) - {roll.rank}
        while missing and time.monotonic() < deadline:
            missing = {rank for rank in missing if not store.check([f"left/{rank}"])}
            time.sleep(0.05)
        hosts = {rank: store.get(_host_key(rank)).decode() for rank in sorted(missing)}
        answers.update({rank: hosts.get(rank, "") for rank in range(roll.size)})
    except RuntimeError:  # the store is gone with its host
        return
