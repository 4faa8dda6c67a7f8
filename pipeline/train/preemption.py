"""Requests to stop: signals, a time limit, a STOP file. They set a flag; ranks agree on it elsewhere.

Not here: acting on the flag (`engine`): no rank may stop before the others know.
"""

import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_SAME_REQUEST_S = 2.0
"""A launcher forwards the signal that the terminal has sent already; within this time they are one request."""


class StopFlag:
    """Set by the first signal, by the clock or by a file; the same signal again ends the process at once.

    Another signal does not: a scheduler's warning (USR1) is followed by its SIGTERM while the state is being saved.
    """

    afterwards: signal.Handlers | None = None
    """What signals do once training has ended, in place of what they did before: a launcher's worker ignores them."""

    def __init__(self, run_dir: Path, max_time_s: float | None = None) -> None:
        self.reason = ""
        self.signal: int | None = None
        self._file = run_dir / "STOP"
        self._deadline = time.monotonic() + max_time_s if max_time_s else None
        self._asked_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopFlag":
        """Install the handlers."""
        wanted = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]  # nohup ignores SIGHUP on purpose
        self._before = {s: signal.signal(s, self._on_signal) for s in wanted}
        return self

    def __exit__(self, *exc: object) -> None:
        """Put the earlier handlers back, or `afterwards`."""
        for number, handler in self._before.items():
            signal.signal(number, handler if self.afterwards is None else self.afterwards)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == self.signal and now - self._asked_at > _SAME_REQUEST_S:
            os._exit(128 + number)
        if self.signal is None:
            self.signal, self._asked_at = number, now
            self.reason = f"signal {signal.Signals(number).name}"

    def asked(self, step: int) -> bool:
        """Tell whether this process wants to stop; the file is looked for every tenth step only."""
        if not self.reason and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = "the time limit train.max_time"
        if not self.reason and step % 10 == 0 and self._file.exists():
            self.reason = f"the file {self._file}"
        return bool(self.reason)
