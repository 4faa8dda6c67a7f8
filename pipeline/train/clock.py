"""Where the time of a run goes: training, waiting for data, evaluating; carried over restarts."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

Part = Literal["step_s", "data_s", "eval_s", "save_s"]


@dataclass
class Clock:
    """Seconds of wall time spent in each part over all starts of the run, images trained on, and the GPUs' energy in J.

    `device_s` adds up the seconds times the processes that there were then; `devices` are those of now.
    """

    step_s: float = 0.0
    data_s: float = 0.0
    eval_s: float = 0.0
    save_s: float = 0.0
    images: int = 0
    energy_j: float = 0.0
    device_s: float = 0.0
    devices: int = 1

    @contextmanager
    def measure(self, part: Part) -> Iterator[None]:
        """Add the time of the `with` block to one part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            setattr(self, part, getattr(self, part) + spent)
            self.device_s += spent * self.devices

    def resumed(self, saved: Mapping[str, Any], devices: int) -> "Clock":
        """Return the clock that a checkpoint holds, to go on from; `devices` were there, if it is too old to say."""
        clock = Clock(**saved)
        if "device_s" not in saved:
            clock.device_s = clock.total_s * devices
        clock.devices = self.devices
        return clock

    @property
    def train_s(self) -> float:
        """Seconds in training steps, waiting for data included; evaluation and saving not."""
        return self.step_s + self.data_s

    @property
    def total_s(self) -> float:
        """Seconds in all parts."""
        return self.train_s + self.eval_s + self.save_s

    def since(self, before: "Clock") -> "Clock":
        """Return what was added since an earlier copy."""
        return Clock(**{k: v - getattr(before, k) for k, v in asdict(self).items()})

    def copy(self) -> "Clock":
        """Return a copy."""
        return Clock(**asdict(self))

    def rates(self) -> dict[str, float]:
        """Return images a second over all processes, and the share of training time spent waiting for data."""
        busy = max(self.train_s, 1e-9)
        return {"images_per_s": self.images / busy, "data_wait": self.data_s / busy}
