"""How settings of optimizers change in the course of training: pure functions of the progress."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Momentum = Annotated[float, Field(ge=0, lt=1)]
"""The type of a family's setting that is a momentum of SGD."""


def linear(ends: tuple[float, float], share: float) -> float:
    """The value that goes from the first end to the second while `share` goes from 0 to 1."""
    first, last = ends
    return first + (last - first) * min(1.0, share)
