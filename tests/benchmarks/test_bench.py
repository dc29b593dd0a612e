"""The benchmark runs and times the code of a run. What the figures are is not tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines.bench import measure
from tests.training import tiny_config


@pytest.mark.slow
@pytest.mark.timeout(600)
# the code of Ray, MLflow and Prefect uses what they have deprecated
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_every_part_is_timed(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path, cluster__workers=2)
    lines = list(measure(config, seconds=0.5, rounds=1))
    rates = {line[:32].strip(): float(line[32:].split()[0]) for line in lines[1:]}
    assert list(rates) == [
        "sharding",
        "loader, decoding",
        "loader, from memory",
        "scoring",
        "step, 1 worker on 1 core",
        "step, 2 workers",
        "whole pipeline, 1 worker",
        "whole pipeline, 2 workers",
    ]
    assert all(rate > 0 for rate in rates.values()), rates
    assert re.search(r"[\d.]+ times one worker$", lines[-3])
    assert all(re.search(r"overhead [+-][\d.]+%$", line) for line in lines[-2:])
