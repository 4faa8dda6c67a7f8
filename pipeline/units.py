"""Durations, sizes and rates for people: `"90ep"`, `"500st"`, `"10%"` to steps, bytes and seconds to text."""

import math
import re
from dataclasses import dataclass
from typing import Literal

Unit = Literal["ep", "st", "%"]
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ep|st|%)?\s*$")


@dataclass(frozen=True)
class Duration:
    """A length of training: `value` epochs (`ep`), steps (`st`) or per cent of the whole (`%`)."""

    value: float
    unit: Unit

    @classmethod
    def parse(cls, text: str | float) -> "Duration":
        """Read `"90ep"`, `"500st"`, `"10%"`; a bare number means epochs.

        Raises:
            ValueError: if the text is none of these.
        """
        found = _DURATION.match(str(text))
        if found is None:
            raise ValueError(f"{text!r} is not a duration; write 90ep (epochs), 500st (steps) or 10% (of the training)")
        unit = found[2] or "ep"
        if unit == "st" and "." in found[1]:
            raise ValueError(f"{text!r}: steps are whole numbers")
        return cls(float(found[1]), unit)  # type: ignore[arg-type]

    def steps(self, steps_per_epoch: int, total_steps: int | None = None) -> int:
        """Return the duration in optimiser steps, rounded to the nearest.

        Raises:
            ValueError: for a percentage of an unknown whole.
        """
        if self.unit == "st":
            return int(self.value)
        if self.unit == "ep":
            return math.floor(self.value * steps_per_epoch + 0.5)
        if total_steps is None:
            raise ValueError("a percentage needs a length of training to be a part of")
        return math.floor(self.value / 100 * total_steps + 0.5)

    def share_of(self, whole: "Duration") -> float | None:
        """Return the duration as a share of the whole training, or None if that depends on the steps of an epoch."""
        if self.unit == "%":
            return self.value / 100
        return self.value / whole.value if self.unit == whole.unit else None

    def falls_on(self, step: int, steps_per_epoch: int, total_steps: int) -> bool:
        """Whether something that is done this often is due after `step` steps: at the whole step nearest to each multiple.

        Not every so many rounded steps, which would drift: every half of an epoch of 89 steps falls on 45, 89, 134, 178.
        """
        exact = {"st": self.value, "ep": self.value * steps_per_epoch, "%": self.value / 100 * total_steps}[self.unit]
        if exact <= 1:
            return step > 0
        times = round(step / exact)
        return times > 0 and math.floor(times * exact + 0.5) == step

    def __str__(self) -> str:
        """Return the text that parses to the same duration."""
        return f"{self.value:.15g}{self.unit}"


def seconds(value: float) -> str:
    """Return seconds as `7.3s`, `4m05s` or `2h03m`."""
    if value < 60:
        return f"{value:.1f}s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def size(n_bytes: float) -> str:
    """Return a number of bytes as `97.8 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(n_bytes) < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


def count(n: int, noun: str, plural: str | None = None) -> str:
    """Return `1 image`, `1,281,167 images`."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
