"""A few hundred mutated files for each reader of files that others write. The same by the hundred
thousand: `python -m tests.fuzz.pictures --inputs 100000`, and so on."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from tests.fuzz import archives, index, pickles, pictures
from tests.fuzz.runner import fuzz


@pytest.mark.fault(
    "thousands of mutated pictures, archives, indexes and pickles",
    "each is read or refused in time, within memory and by a promised error; what a checksum "
    "covers is read as it was written",
)
@pytest.mark.parametrize(
    ("reader", "inputs"), [(archives, 250), (index, 1000), (pickles, 1500), (pictures, 1000)]
)
def test_mutated_files_are_read_or_refused(reader: ModuleType, inputs: int, tmp_path: Path) -> None:
    target = reader.target(tmp_path)
    report = fuzz(target, reader.seeds(), reader.ALLOWED, inputs, tokens=reader.TOKENS, seed=2026)
    assert not report.findings, report.findings[0].what
    assert report.read > inputs / 200 and report.refused > inputs / 4
