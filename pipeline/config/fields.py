"""The kinds of value that configuration keys have, and the frozen group that they stand in.

Not here: the keys (`schema`, `sections`).
"""

from typing import Annotated

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


class Section(BaseModel):
    """A frozen group of keys that refuses unknown ones."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        arbitrary_types_allowed=True,
        validate_default=True,
        protected_namespaces=(),
    )
