"""Requests to stop that come while a launcher still starts; it imports nothing slow, so that they are heard at once."""

import os
import signal
from types import FrameType

from pipeline.errors import Stopped
from pipeline.train.preemption import SIGNALS

NOTHING_RAN = "stopped while no training process was running; nothing had to be saved, start the same command again"


def leave_on_signals() -> None:
    """Have signals end this process with exit code 75 and a line, until others handle them: it has started nothing yet."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP on purpose
            signal.signal(number, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{NOTHING_RAN}\n".encode())
    os._exit(Stopped.exit_code)
