"""The progress bar of the sampling commands: on a terminal alone, where work takes long."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, TypeAlias

from tqdm import tqdm

if TYPE_CHECKING:
    ProgressBar: TypeAlias = tqdm[NoReturn]
else:
    ProgressBar = tqdm  # which its stubs alone can subscript

_QUIET_S = 3.0
"""Work that is done sooner shows no bar."""


def progress_bar(what: str, unit: str, total: int | None = None) -> ProgressBar:
    """A bar on stderr to be used as a context; `what` stands before it, `unit` behind its speed."""
    return tqdm(total=total, desc=what, unit=unit, disable=None, delay=_QUIET_S)
