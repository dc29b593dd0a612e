"""What follows when a training falls ill, in trainings that do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gan_train.adversary import Stage
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.loader import LoadedBatch
from gan_train.data.sharding import shard
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import list_checkpoints
from gan_train.runs.events import Event, read_events, read_with_offsets
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.doctor import SHIFT, Sick
from gan_train.training.scoring import Scorer
from gan_train.training.trainer import Trainer
from pipelines.registry.promotion import best_checkpoint, why_none
from tests.training import tiny_config
from tests.unit.training.test_trainer import VANILLA

Harm = Callable[[Trainer], None]
TICKS = {"train__tick_kimg": 0.032, "train__checkpoint_kimg": 0.096, "train__total_kimg": 0.48}


def ill(
    source: Path, tmp_path: Path, patch: pytest.MonkeyPatch, harm: Harm, **changes: Any
) -> Trainer:
    """A trainer whose every step from 200 images on is followed by `harm`, unless it sees other
    data. A checkpoint comes every 96 images, and 480 are the end."""
    config = tiny_config(source, tmp_path, family=VANILLA, **TICKS, **changes)
    patch.setattr(Trainer, "step", harmed(Trainer.step, harm))
    return trainer_of(config, tmp_path / "run")


def harmed(step: Any, harm: Harm) -> Any:
    def with_harm(self: Trainer, stage: Stage, loaded: LoadedBatch) -> None:
        step(self, stage, loaded)
        if self.clock.nimg > 200 and int(loaded.positions[0]) < SHIFT:
            harm(self)

    return with_harm


def trainer_of(config: Config, run_dir: Path) -> Trainer:
    run_dir.mkdir(exist_ok=True)
    shards = shard(config.data, config.workspace)
    return Trainer(config, Index.load(shards), shards, PlainRuntime(run_dir))


@torch.no_grad()
def collapse(trainer: Trainer) -> None:
    """Every image becomes the same, also those of the averaged generator."""
    for adversary in (trainer.adversary, trainer.averaged.adversary):
        for parameter in adversary.get_submodule("generator").parameters():
            parameter.zero_()


def diverge(trainer: Trainer) -> None:
    trainer.curves.add("loss/D", torch.tensor(float("nan")))


def told(run_dir: Path) -> list[tuple[int, list[str]]]:
    """Every event `diagnosis` of the log: its images, and the names in it."""
    events = (event for event, _ in read_with_offsets(run_dir))
    return [
        (e["nimg"], [one["name"] for one in e["found"]]) for e in events if e["kind"] == "diagnosis"
    ]


def kinds(events: list[Event], kind: str) -> list[Event]:
    return [event for event in events if event["kind"] == kind]


def test_a_disease_is_told_and_registered_never(
    tiny_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer = ill(tiny_source, tmp_path, monkeypatch, collapse)
    assert trainer.run(), "a warning ends nothing"
    run_dir = tmp_path / "run"
    assert told(run_dir) == [(384, ["mode collapse"])]  # 288 may have been chance
    assert "DIAGNOSIS mode collapse since 0.288 kimg: two samples differ by 0%" in caplog.text
    assert "Mode collapse" in (run_dir / "page.html").read_text()
    log = read_events(run_dir)
    for event in kinds(log, "checkpoint"):  # as if collapse had brought the best distance
        event["scores"] |= {"fid": (1000 / event["nimg"]) ** 3}
        event["scores"]["pair_distance"] += 1e-3  # not quite alike: no degenerate score
    best = best_checkpoint(log)
    assert best is not None and best["nimg"] == 288, "of all that are not of a broken state"
    late = [e for e in log if e["kind"] != "checkpoint" or e["nimg"] >= 288]
    assert "that of a broken state: mode collapse" in why_none(late, "run", 8)


@pytest.mark.fault(
    "a collapse in mid-run, with `train.on_sickness` stop",
    "the training ends and says what it has; resuming repeats that, and a warning is no end",
)
def test_a_policy_that_stops(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train__on_sickness": "stop"}
    trainer = ill(tiny_source, tmp_path, monkeypatch, collapse, **changes)
    for attempt in (trainer, trainer_of(trainer.config, tmp_path / "run")):
        with pytest.raises(Sick, match="training is stopped: mode collapse since"):
            attempt.run()
    assert kinds(read_events(tmp_path / "run"), "end") == []
    config = tiny_config(tiny_source, tmp_path, family=VANILLA, **TICKS)
    assert trainer_of(config, tmp_path / "run").run(), "the same run, with a warning alone"


@pytest.mark.fault(
    "a collapse, or NaN in a loss, with `train.on_sickness` roll_back",
    "trains on from the last checkpoint before it, with other data; a run that falls ill each time "
    "ends after `train.roll_backs`",
)
@pytest.mark.parametrize("harm", [collapse, diverge])
def test_a_policy_that_rolls_back(
    harm: Harm,
    tiny_source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    run_dir = tmp_path / "run"
    changes = {"train__on_sickness": "roll_back", "train__roll_backs": 2}
    trainer = ill(tiny_source, tmp_path, monkeypatch, harm, **changes)
    assert trainer.run()
    log = read_events(run_dir)
    (back,) = kinds(log, "rolled_back")
    after = next(e for e in log[log.index(back) :] if e["kind"] == "metrics")
    record_property("recovered_s", (after["time_ms"] - back["time_ms"]) / 1000)
    record_property("lost", "the work since that checkpoint")
    assert (back["nimg"], back["number"]) == (192, 1)
    assert trainer.shift, "other data"
    assert run_folder.finished(log)
    scores = [event["scores"]["pair_distance"] for event in kinds(log, "checkpoint")]
    assert len(scores) == 5 and min(scores) > 0
    assert [int(folder.name) for folder in list_checkpoints(run_dir)] == [480, 384, 288]
    assert {e["nimg"] for e in kinds(log, "metrics")} == set(range(32, 481, 32))
    # whoever resumes the run sees the same data as it would have gone on with
    again = trainer_of(trainer.config, run_dir)
    again.resume()
    assert again.shift == trainer.shift


def test_rolling_back_has_an_end(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"train__on_sickness": "roll_back", "train__roll_backs": 2}
    trainer = ill(tiny_source, tmp_path, monkeypatch, diverge, **changes)
    step = Trainer.step

    def always(self: Trainer, stage: Stage, loaded: LoadedBatch) -> None:
        step(self, stage, loaded)
        if self.clock.nimg > 200:
            diverge(self)

    monkeypatch.setattr(Trainer, "step", always)
    with pytest.raises(FloatingPointError, match="training diverged"):
        trainer.run()
    log = read_events(tmp_path / "run")
    assert [e["number"] for e in kinds(log, "rolled_back")] == [1, 2]
    assert told(tmp_path / "run")[-1] == (224, ["not finite"])
    assert "diverged" in (tmp_path / "run" / "page.html").read_text()


def test_patience_ends_a_training_that_no_longer_gets_better(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The distance falls to 40 and stays there: after 192 images without progress it is enough."""
    course = iter([90.0, 40.0, 40.5, 39.9, 10.0])

    def measure(self: Scorer) -> dict[str, Any]:
        return {"scores": {"fid": next(course), "fid_se": 1.0}, "protocol": {"images": 16}}

    monkeypatch.setattr(Scorer, "measure", measure)
    changes = {"train__patience_kimg": 0.192, **TICKS}
    config = tiny_config(tiny_source, tmp_path, family=VANILLA, **changes)
    trainer = trainer_of(config, tmp_path / "run")
    assert trainer.run()
    log = read_events(tmp_path / "run")
    assert trainer.clock.nimg == 384 and run_folder.finished(log)
    assert told(tmp_path / "run") == [(384, ["plateau"])]
    resumed = trainer_of(config, tmp_path / "run")
    assert resumed.run() and resumed.clock.nimg == 384, "it is still enough"
