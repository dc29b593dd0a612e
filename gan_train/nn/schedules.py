"""How settings of optimizers change in the course of training: pure functions of the progress."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Momentum = Annotated[float, Field(ge=0, lt=1)]
"""A momentum of SGD, as a setting of a family."""


def linear(ends: tuple[float, float], share: float) -> float:
    """From the first value to the second as `share` goes from 0 to 1; the second after that."""
    first, last = ends
    return first + (last - first) * min(1.0, share)
