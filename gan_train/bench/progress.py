"""Shows the progress of a measurement on stderr: a bar on a terminal, else a line for each part."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm


class Progress:
    """Shows which of `total` parts is being measured. Nothing is written to stdout."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        """`stream` is sys.stderr unless given."""
        self._stream = stream or sys.stderr
        self._bar = tqdm(
            total=total,
            unit="part",
            file=self._stream,
            dynamic_ncols=True,
            disable=not self._stream.isatty(),
        )
        self._begun, self._total = 0, total

    @contextmanager
    def part(self, what: str) -> Iterator[None]:
        """A context for one part: its name is shown at the start, and it counts at the end."""
        self._begun += 1
        if self._bar.disable:
            print(f"{self._begun} of {self._total}: {what}", file=self._stream, flush=True)
        self._bar.set_description(what)
        yield
        self._bar.update()

    def close(self) -> None:
        """Remove the bar, so that the next output begins on a line of its own."""
        self._bar.leave = False
        self._bar.close()
