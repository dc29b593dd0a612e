"""The benchmark runs and times the code of a run. What the figures are is not tested."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from gan_train import recipes
from tests.training import tiny_config


@pytest.mark.slow
@pytest.mark.long
def test_every_part_is_timed(tiny_source: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    config = tiny_config(tiny_source, tmp_path, cluster__workers=2)
    recipe.write_text(recipes.dump(config), encoding="utf-8")
    # a process of its own, as for a user: its Prefect and Ray end with it
    command = [sys.executable, "-m", "pipelines.cli.main", "bench", str(recipe)]
    told = subprocess.run(
        [*command, "--seconds", "0.5", "--rounds", "1"], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr
    # how much the engines took is known where the rounds are long enough
    lines = [line for line in told.stdout.splitlines() if not line.startswith("engines")]
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
