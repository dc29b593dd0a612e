"""The soak of `make soak`, with one run and a few faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import soak


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.fault(
    "faults at random, by a seeded schedule (`make soak`)",
    "weights, metrics and registry equal those of a run without faults",
)
def test_a_harmed_run_ends_as_one_without_faults(tmp_path: Path) -> None:
    harmed = soak.Settings(minutes=0, seed=3, kimg=3, pause=(0.0, 2.0), most=2)
    report, same = soak.soak(tmp_path, harmed)
    assert same, report
    assert "2 faults" in report
