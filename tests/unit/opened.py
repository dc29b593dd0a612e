"""Which files are opened while a test looks: what is not opened is not read."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_watched: list[tuple[Path, Counter[str]]] = []
_installed: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event != "open" or not _watched or not isinstance(arguments[0], str | bytes | os.PathLike):
        return
    path = Path(os.fsdecode(arguments[0]))
    for root, counts in _watched:
        if path.is_relative_to(root) and path.is_file():
            counts[path.relative_to(root).as_posix()] += 1


@contextmanager
def opened(root: Path) -> Iterator[Counter[str]]:
    """How often every file below `root` is opened by this process, by its path from there."""
    if not _installed:  # a hook cannot be taken away
        sys.addaudithook(_hook)
        _installed.append(True)
    entry = root.resolve(), Counter[str]()
    _watched.append(entry)
    try:
        yield entry[1]
    finally:
        _watched.remove(entry)
