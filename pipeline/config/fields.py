"""The kinds of value that configuration keys have, and the frozen group that they stand in."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from pipeline.units import Duration

Steps = Annotated[
    Duration,
    BeforeValidator(lambda v: v if isinstance(v, Duration) else Duration.parse(v)),
    PlainSerializer(str),
]
"""A duration: `90ep` epochs, `500st` steps, `10%` of the training."""
Channels3 = tuple[float, float, float]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Kind(Enum):
    """What a key decides: the weights (learned), the figures that they are given (measured), or neither (running)."""

    LEARNED = "learned"
    MEASURED = "measured"
    RUNNING = "running"


MEASURED, RUNNING = Kind.MEASURED, Kind.RUNNING


@dataclass(frozen=True)
class OnlyIf:
    """Marks a key that has an effect only where one of `keys` is one of `values`; without values, where one of them is set.

    Null, zero, an empty list and `none` count as not set. A key with two of these marks needs both.
    """

    keys: tuple[str, ...]
    values: tuple[str, ...] = ()


def only_if(key: str, *values: str) -> OnlyIf:
    """Return the mark for `only_if("optim.name", "adamw", "lamb")` or `only_if("ema.decay or ema.half_life")`."""
    return OnlyIf(tuple(key.split(" or ")), values)


class Section(BaseModel):
    """A frozen group of keys that refuses unknown ones; `kind` is that of its keys, where they are not marked otherwise."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        validate_default=True,
        protected_namespaces=(),
    )

    kind: ClassVar[Kind] = Kind.LEARNED
