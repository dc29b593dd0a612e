"""Settings that follow the progress of training, and how to declare them.

`gan_train/training/fitting.py` makes a schedule shorter or longer. These declarations tell it which
settings follow the length of the schedule.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from pydantic import Field

Momentum = Annotated[float, Field(ge=0, lt=1)]
"""The type of a family's setting that is a momentum of SGD."""

Follows = Literal["length", "factor per step", "increment per step"]
"""How a setting follows the length of the schedule. A `length` counts thousands of images. A
`factor per step` is multiplied with itself at every step; an `increment per step` is such a factor
less 1."""


def following(kind: Follows, default: Any, description: str, **limits: Any) -> Any:
    """A field of a family's settings that changes when its schedule is made shorter or longer."""
    return Field(default, description=description, json_schema_extra={"schedule": kind}, **limits)


@runtime_checkable
class PartlyUnused(Protocol):
    """A family's settings of which some must keep their defaults, as others make them unused."""

    @property
    def unused(self) -> tuple[str, ...]:
        """The names of the settings that are not used."""


def linear(ends: tuple[float, float], share: float) -> float:
    """The value that goes from the first end to the second while `share` goes from 0 to 1."""
    first, last = ends
    return first + (last - first) * min(1.0, share)
