"""Trainings that run as processes of this one, beside each other: started, and told of signals together."""

import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from types import FrameType

from pipeline.errors import Stopped
from pipeline.train.preemption import SIGNALS


class Children:
    """Processes of trainings; a signal reaches all of them, and none is started after it."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._running: set[subprocess.Popen[bytes]] = set()
        self._starting = RLock()  # a second signal may come within the handler of the first

    def run(self, command: Sequence[str], log: Path, env: Mapping[str, str]) -> int:
        """Run one; return its exit code, 75 if a signal came before it could save anything or was started at all."""
        with log.open("ab") as file:
            with self._starting:
                if self.signal is not None:
                    return Stopped.exit_code
                child = subprocess.Popen(command, stdout=file, stderr=file, env=env)
                self._running.add(child)
            code = child.wait()
            self._running.discard(child)
        code = 128 - code if code < 0 else code
        return Stopped.exit_code if self.signal is not None and code == 128 + self.signal else code

    def forward(self, number: int, frame: FrameType | None) -> None:
        """Pass a signal on. From a terminal they have it already: twice within two seconds is once (`preemption`)."""
        with self._starting:  # threads hold it for the moment that a start takes
            self.signal = number
            running = tuple(self._running)
        for child in running:
            child.send_signal(number)

    @contextmanager
    def forwarding(self) -> Iterator[None]:
        """Pass signals on for the time of the `with` block, but those that are ignored on purpose, as nohup does."""
        wanted = [one for one in SIGNALS if signal.getsignal(one) != signal.SIG_IGN]
        before = {one: signal.signal(one, self.forward) for one in wanted}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
