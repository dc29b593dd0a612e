"""The progress bar of the sampling commands, which is shown for long work on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, TypeAlias

from tqdm import tqdm

if TYPE_CHECKING:
    ProgressBar: TypeAlias = tqdm[NoReturn]
else:
    ProgressBar = tqdm  # which its stubs alone can subscript

_QUIET_S = 3.0
"""The bar appears after this time, in seconds."""


def progress_bar(what: str, unit: str, total: int | None = None) -> ProgressBar:
    """A progress bar on stderr, to be used as a context manager; `what` stands before the bar, and
    `unit` is what it counts."""
    return tqdm(total=total, desc=what, unit=unit, disable=None, delay=_QUIET_S)
