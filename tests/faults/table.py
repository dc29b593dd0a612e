"""The table of faults: what is injected, what is promised, how long it took, what was lost.

A test is a row of it by the mark `fault(injected, promised)`. What it measures it says by pytest's
own `record_property`: "recovered_s", the seconds from the fault until the work goes on, and "lost",
what has to be done again. `make faults` writes the rows of one run into build/faults.md, and
docs/faults.md keeps those of the last run that was looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

HEAD = "| injected | promised | work goes on after | lost | held |\n|---|---|---|---|---|\n"


class Row(NamedTuple):
    """One fault of one run: the longest recovery of its cases, held if all of them held."""

    injected: str
    promised: str
    recovered_s: float | None
    lost: str
    held: bool

    def line(self) -> str:
        recovered = "" if self.recovered_s is None else f"{self.recovered_s:.1f} s"
        cells = (self.injected, self.promised, recovered, self.lost)
        return f"| {' | '.join(cells)} | {'yes' if self.held else '**no**'} |\n"


def mark(item: pytest.Item) -> tuple[str, str] | None:
    """What a test injects and promises; None for a test that is no row."""
    marker = item.get_closest_marker("fault")
    if marker is None:
        return None
    injected, promised = marker.args
    return injected, promised


def row(report: pytest.TestReport) -> Row | None:
    """The row that a test's report holds."""
    said = dict(report.user_properties)
    if "fault" not in said:
        return None
    injected, promised = said["fault"]
    return Row(
        injected, promised, said.get("recovered_s"), str(said.get("lost", "")), report.passed
    )


def gathered(rows: Iterable[Row]) -> list[Row]:
    """One row a fault, in order of its words."""
    faults: dict[str, Row] = {}
    for one in rows:
        before = faults.get(one.injected, one)
        slowest = max(before, one, key=lambda each: each.recovered_s or 0)
        faults[one.injected] = slowest._replace(held=before.held and one.held)
    return [faults[injected] for injected in sorted(faults)]


def write(path: Path, reports: Iterable[pytest.TestReport]) -> None:
    """Write the rows of a run, if any of its tests is one, over those of earlier runs."""
    rows = gathered(found for report in reports if (found := row(report)) is not None)
    if not rows:
        return
    lines = {one.injected: one.line() for one in rows}
    if path.exists():
        earlier = path.read_text(encoding="utf-8").removeprefix(HEAD).splitlines(keepends=True)
        lines = {line[2:].partition(" | ")[0]: line for line in earlier} | lines
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEAD + "".join(lines[key] for key in sorted(lines)), encoding="utf-8")
