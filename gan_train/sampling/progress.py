"""The progress bar of the sampling commands: on a terminal alone, where work takes long."""

from __future__ import annotations

from typing import NoReturn

from tqdm import tqdm

_QUIET_S = 3.0
"""Work that is done sooner shows no bar."""


def progress_bar(what: str, unit: str, total: int | None = None) -> tqdm[NoReturn]:
    """A bar on stderr to be used as a context; `what` stands before it, `unit` behind its speed."""
    return tqdm(total=total, desc=what, unit=unit, disable=None, delay=_QUIET_S)
