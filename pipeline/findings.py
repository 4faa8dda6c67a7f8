"""What checks of a machine found, for people and programs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """What one check found; what is not ok says what to do."""

    check: str
    state: State
    said: str


def render(found: Sequence[Finding]) -> str:
    """Return findings for people."""
    width = max(len(one.check) for one in found)
    return "\n".join(f"{one.state:<8} {one.check:<{width}}  {one.said}" for one in found)


def as_json(found: Sequence[Finding]) -> list[dict[str, str]]:
    """Return findings as plain values."""
    return [asdict(one) for one in found]


def failed(found: Sequence[Finding]) -> bool:
    """Return whether anything is not fit."""
    return any(one.state == "failed" for one in found)
