"""Shows a person at the terminal how a run goes on, by a bar or lines, and warnings; and tables."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from gan_train.metrics.scores import number, scores_of
from gan_train.runs.events import Event
from gan_train.text import line as one_line
from gan_train.text import visible
from pipelines.flows.time_left import Forecast, in_words

_SHOWN = 4  # scores in a line
_LINE_S = 15.0  # between two lines where there is no terminal


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column stands at the left, the others at the right."""
    rows = [[*map(one_line, row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


class LineReader:
    """Follows a text file: the complete lines that were appended since the last look."""

    def __init__(self, path: Path) -> None:
        """Lines that are in the file by now are left out."""
        self.path = path
        self._place = path.stat().st_size if path.exists() else 0

    def new(self) -> list[str]:
        """The new lines, oldest first. A line that is still being written is left for later."""
        if not self.path.exists() or self.path.stat().st_size <= self._place:
            return []
        with self.path.open("rb") as file:
            file.seek(self._place)
            whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return []
        self._place += len(whole) + 1
        return whole.decode("utf-8").split("\n")


class Display:
    """A progress bar on a terminal; where there is no terminal, a line now and then."""

    def __init__(self, forecast: Forecast, stream: TextIO = sys.stderr) -> None:
        """`forecast` has already taken the events of earlier attempts."""
        self._forecast, self._stream = forecast, stream
        self._line_due = 0.0
        self.total, self.done = forecast.end, forecast.nimg
        self._bar = tqdm(
            total=self.total,
            initial=self.done,
            unit="img",
            unit_scale=True,
            dynamic_ncols=True,
            file=stream,
            disable=not stream.isatty(),
            desc="training",
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}  {postfix}",
        )

    def show(self, event: Event) -> None:
        """Show one event of the log."""
        self._forecast.take(event)
        forward = self._forecast.nimg - self.done  # negative where the log was cut
        self.done += forward
        if event["kind"] == "metrics":
            self._bar.set_postfix_str(self._now(event), refresh=False)
        self._bar.update(forward)
        if event["kind"] == "start":
            self.say(f"training in {event['precision']}")
        elif event["kind"] == "checkpoint":
            self.say(f"{event['nimg'] / 1000:8.1f} kimg  {score_line(event)}")
        elif event["kind"] == "diagnosis" and not event["found"]:
            self.say(f"{event['nimg'] / 1000:8.1f} kimg  healthy again")
        elif self._bar.disable and event["kind"] == "metrics" and time.monotonic() > self._line_due:
            self._line_due = time.monotonic() + _LINE_S
            place = f"{event['nimg'] / 1000:8.1f} of {self.total / 1000:.1f} kimg"
            self.say(f"{place}, {self._now(event)}")

    def _now(self, event: Event) -> str:
        seconds = self._forecast.seconds()
        assert seconds is not None, "there was a tick"
        return f"{in_words(seconds)}  {describe(event['values'])}"

    def say(self, text: str) -> None:
        """Print a line without tearing the bar."""
        self._bar.write(visible(text), file=self._stream)
        self._stream.flush()

    def close(self) -> None:
        """Close the bar; it stays on the screen."""
        self._bar.close()


def describe(values: dict[str, float]) -> str:
    """Resolution, fade, speed and losses of a tick in one short text."""
    parts = []
    if "resolution" in values:
        parts.append(f"{values['resolution']:.0f}px")
    if values.get("alpha", 1.0) < 1.0:
        parts.append(f"alpha {values['alpha']:.2f}")
    if "images_per_second" in values:
        parts.append(f"{values['images_per_second']:.0f} img/s")
    losses = {k.partition("/")[2]: v for k, v in values.items() if k.startswith("loss/")}
    parts += [f"{name} {value:.3g}" for name, value in losses.items()]
    return "  ".join(parts)


def score_line(event: Event) -> str:
    """The first few scores of a checkpoint's event in one line, each with its reference."""
    scores = scores_of(event.get("scores", {}), event.get("protocol", {}))
    shown = [
        f"{score.name} {score.text}"
        + (
            ""
            if score.reference is None
            else f" ({score.reference_word} {number(score.reference)})"
        )
        for score in list(scores.values())[:_SHOWN]
    ]
    level = f"{event['resolution']:.0f}px  " if "resolution" in event else ""
    return level + ("  ".join(shown) or "not scored")


_SEVERE = re.compile(r" (WARNING|ERROR|CRITICAL) (worker \d+: .*)")


class Warnings:
    """Follows the workers' log, and finds each warning and error once."""

    def __init__(self, path: Path) -> None:
        self._lines, self._said = LineReader(path), set[str]()

    def new(self) -> list[str]:
        """The messages since the last call. A message that several workers wrote comes once."""
        found = []
        for line in self._lines.new():
            match = _SEVERE.search(line)
            text = match and f"{match[1]}: {match[2].partition(': ')[2]}"
            if text and text not in self._said:
                self._said.add(text)
                found.append(text)
        return found
