"""Several workers go back together."""

from __future__ import annotations

from pathlib import Path

import pytest

from gan_train.runs.events import read_events
from gan_train.training.trainer import Trainer
from tests.training import run, run_workers, tiny_config, weights
from tests.unit.training.test_doctor import TICKS, diverge, harmed
from tests.unit.training.test_trainer import VANILLA

pytestmark = pytest.mark.slow


def train_and_diverge(source: Path, folder: Path) -> None:
    step = Trainer.step
    Trainer.step = harmed(step, diverge)  # type: ignore[method-assign]
    more = {"train__on_sickness": "roll_back", "train__precision": "float64"}
    run(tiny_config(source, folder, family=VANILLA, **TICKS, **more), folder / "run")
    Trainer.step = step  # type: ignore[method-assign]


def test_two_workers_go_back_as_one_does(tiny_source: Path, tmp_path: Path) -> None:
    for world in (1, 2):
        folder = tmp_path / str(world)
        folder.mkdir()
        run_workers(world, folder, train_and_diverge, tiny_source, folder)
        kinds = [event["kind"] for event in read_events(folder / "run")]
        assert kinds.count("rolled_back") == 1 and kinds[-1] == "end"
    one, two = (weights(tmp_path / str(world) / "run") for world in (1, 2))
    assert one.keys() == two.keys()
    assert all(bool((one[name] - two[name]).abs().max() < 1e-9) for name in one)
