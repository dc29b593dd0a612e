"""Batch normalisation in training: two workers like one, or by design not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gan_train.config import Config
from gan_train.runs.runtime import PlainRuntime
from tests.training import run, run_workers, tiny_config, weights

pytestmark = pytest.mark.slow


def _train(config: Config, run_dir: Path) -> None:
    run(config, run_dir, PlainRuntime(run_dir))


def _largest_difference(source: Path, folder: Path, **changes: Any) -> float:
    """Between one worker and two after four steps in two micro-batches each, statistics included,
    in float64."""
    family = {"name": "dcgan", "conditional": True, "z_dim": 6, "channels": 4, "kimg": 0.064}
    config = tiny_config(
        source,
        folder,
        family=family | changes,
        data__resolution=16,
        train__ema_kimg=0,
        train__precision="float64",
        train__accumulate=2,
    )
    one = weights(run(config, folder / "one"))
    run_workers(2, folder, _train, config, folder / "two")
    two = weights(folder / "two")
    assert any("running_variance" in name for name in one)
    return max(float((two[name] - value).abs().max()) for name, value in one.items())


def test_synchronised_statistics_train_like_one_worker(tiny_source: Path, tmp_path: Path) -> None:
    assert _largest_difference(tiny_source, tmp_path) < 1e-10


def test_statistics_per_worker_do_not(tiny_source: Path, tmp_path: Path) -> None:
    assert _largest_difference(tiny_source, tmp_path, batch_norm="per_worker") > 1e-4
