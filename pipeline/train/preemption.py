"""Requests to stop: signals, a time limit, a STOP file. They set a flag; no rank may act on it before the others know."""

import os
import signal
import stat
import time
from pathlib import Path
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_SAME_REQUEST_S = 2.0
"""A launcher forwards the signal that the terminal has sent already; within this time they are one request."""
_OBEYED_NS = 0
"""Time of change that an obeyed STOP file gets: one that was made since, or touched again, has another."""


class StopFlag:
    """Set by the first signal, by the clock or by a file; the same signal again ends the process at once.

    Another signal does not: a scheduler's warning (USR1) is followed by its SIGTERM while the state is being saved.
    A flag that is entered within the `with` block of another takes over the request that this one has seen.
    """

    afterwards: signal.Handlers | None = None
    """What signals do once training has ended, in place of what they did before: a launcher's worker ignores them."""

    def __init__(self, run_dir: Path | None = None, max_time_s: float | None = None) -> None:
        self.reason = ""
        self.signal: int | None = None
        self.error: Exception | None = None
        self._file: Path | None = None
        self._deadline: float | None = None
        self._asked_at = 0.0
        self._before: dict[int, Any] = {}
        if run_dir is not None:
            self.watch(run_dir, max_time_s)

    def __enter__(self) -> Self:
        """Install the handlers."""
        holders = [getattr(signal.getsignal(s), "__self__", None) for s in SIGNALS]
        outer = next((flag for flag in holders if isinstance(flag, StopFlag)), None)
        wanted = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN]  # nohup ignores SIGHUP on purpose
        self._before = {s: signal.signal(s, self._on_signal) for s in wanted}
        if outer is not None and self.signal is None:
            self.reason, self.signal, self._asked_at = outer.reason, outer.signal, outer._asked_at
        return self

    def __exit__(self, *exc: object) -> None:
        """Put the earlier handlers back, or `afterwards`."""
        for number, handler in self._before.items():
            signal.signal(number, handler if self.afterwards is None else self.afterwards)

    def watch(self, run_dir: Path, max_time_s: float | None = None) -> None:
        """Look for the file STOP in a run directory and at the clock too, from now on."""
        self._file = run_dir / "STOP"
        self._deadline = time.monotonic() + max_time_s if max_time_s else None

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == self.signal and now - self._asked_at > _SAME_REQUEST_S:
            os._exit(128 + number)
        if self.signal is None:
            self.signal, self._asked_at = number, now
            self.reason = f"signal {signal.Signals(number).name}"

    def signalled(self) -> bool:
        """Tell whether a signal has come."""
        return self.signal is not None

    def asked(self, step: int) -> bool:
        """Tell whether this process wants to stop; the file is looked for every tenth step only.

        At step 0, before the first step of a start, the clock does not count: each start is to get further.
        """
        if not self.reason and step and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = "the time limit train.max_time"
        if not self.reason and step % 10 == 0 and self._file is not None and is_request(self._file):
            self.reason = f"the file {self._file}"
        return bool(self.reason) or self.error is not None

    def obey(self) -> None:
        """Mark the STOP file, if it was the reason, so that it does not stop the next start."""
        if self._file is not None and self.reason.endswith(str(self._file)):
            try:
                os.utime(self._file, ns=(_OBEYED_NS, _OBEYED_NS))
            except OSError:  # it is another user's
                self._file.unlink(missing_ok=True)

    def fail(self, error: Exception) -> None:
        """Ask to stop because of an error that this process alone has met; `check` raises it."""
        self.error = self.error or error

    def check(self) -> None:
        """Raise the error that was met, if any."""
        if self.error is not None:
            raise self.error


def is_request(file: Path) -> bool:
    """Return whether a STOP file is there that has stopped no run yet; a folder of that name is none."""
    try:
        found = file.stat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_mtime_ns != _OBEYED_NS
