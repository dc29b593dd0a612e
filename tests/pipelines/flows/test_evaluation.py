"""Scores of what a stopped run left unscored: where they go, and by which settings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from gan_train import recipes
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.files.atomic import read_json
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import SCORES, list_checkpoints
from gan_train.runs.events import EventLog
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.scoring import evaluate_checkpoint
from gan_train.training.trainer import train
from pipelines.flows.evaluation import evaluate_run, waiting
from pipelines.registry.shipping import ended
from tests.training import Stopping, tiny_config


class Scores:
    """Scores in this process, and counts how often."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def __call__(self, config: Config, shards: Path, checkpoint: Path) -> dict[str, Any]:
        self.calls.append((checkpoint.name, config.evaluate.images))
        runtime = PlainRuntime(checkpoint.parent)
        return evaluate_checkpoint(config, Index.load(shards), shards, checkpoint, runtime)


@pytest.fixture
def stopped(tiny_source: Path, tmp_path: Path) -> tuple[Config, Path]:
    """A run that was stopped at 128 images, where its second checkpoint has no scores."""
    config = tiny_config(tiny_source, tmp_path / "workspace", train__total_kimg=0.32)
    shards = shard(config.data, config.workspace)
    run_dir = run_folder.new(config, shards)
    train(config, Index.load(shards), shards, Stopping(run_dir, asked=8))
    assert [path.name for path in waiting(run_dir)] == ["000000000128"]
    assert [row["kimg"] for row in run_folder.score_table(run_dir)] == [0.064]
    return config, run_dir


def checkpoints(run_dir: Path) -> list[dict[str, Any]]:
    """The events of checkpoints, without their time."""
    events = [e for e in run_folder.read_events(run_dir) if e["kind"] == "checkpoint"]
    return [{key: value for key, value in event.items() if key != "time_ms"} for event in events]


def test_scores_are_recorded_as_the_trainer_records_them(stopped: tuple[Config, Path]) -> None:
    config, run_dir = stopped
    twin = run_dir.with_name("twin")
    shutil.copytree(run_dir, twin, symlinks=True)
    score = Scores()
    _, row = evaluate_run(config, run_dir, score)
    assert row["kimg"] == 0.128 and row["resolution"] == 8.0 and "pair_distance" in row
    assert score.calls == [("000000000128", 16)]

    # a run that goes on scores the checkpoint that it starts from
    shards = run_folder.shards_of(twin)
    train(config, Index.load(shards), shards, PlainRuntime(twin))
    assert checkpoints(twin)[:2] == checkpoints(run_dir)
    assert read_json(list_checkpoints(run_dir)[0] / SCORES)["protocol"]["images"] == 16


def test_a_second_call_scores_nothing(stopped: tuple[Config, Path]) -> None:
    config, run_dir = stopped
    score = Scores()
    first = evaluate_run(config, run_dir, score)
    assert evaluate_run(config, run_dir, score) == first
    assert len(score.calls) == 1 and len(checkpoints(run_dir)) == 2


def test_a_run_that_was_scored_goes_on_as_if_it_had_not_been(stopped: tuple[Config, Path]) -> None:
    config, run_dir = stopped
    evaluate_run(config, run_dir, Scores())
    shards = run_folder.shards_of(run_dir)
    train(config, Index.load(shards), shards, PlainRuntime(run_dir))
    assert [event["nimg"] for event in checkpoints(run_dir)] == [64, 128, 192, 320]
    assert run_folder.finished(run_folder.read_events(run_dir))


def test_scores_after_the_end_leave_the_run_ended(stopped: tuple[Config, Path]) -> None:
    config, run_dir = stopped
    end = ended(run_dir)
    assert end is not None and end[0] == "KILLED"
    evaluate_run(config, run_dir, Scores())
    assert run_folder.read_events(run_dir)[-1]["kind"] == "checkpoint"
    assert ended(run_dir) == end
    EventLog(run_dir).append("passed_over", 64, checkpoints={"000000000128": "damaged"})
    assert ended(run_dir) == end, "a start that repeats what the log has, writes no other end"
    EventLog(run_dir).append("metrics", 144, values={})
    assert ended(run_dir) is None, "it has gone on"


def test_other_settings_score_all_anew_and_write_nothing(stopped: tuple[Config, Path]) -> None:
    config, run_dir = stopped
    evaluate_run(config, run_dir, Scores())
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    score, other = Scores(), recipes.change(config, {"evaluate.images": 8})
    rows = evaluate_run(other, run_dir, score)
    assert score.calls == [("000000000064", 8), ("000000000128", 8)]
    assert [row["kimg"] for row in rows] == [0.064, 0.128]
    assert before == {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    # how many images go through the extractor at once makes no difference to scores
    evaluate_run(recipes.change(config, {"evaluate.batch": 3}), run_dir, score)
    assert len(score.calls) == 2


def test_a_run_that_went_on_with_other_settings_is_scored_by_those(
    stopped: tuple[Config, Path],
) -> None:
    config, run_dir = stopped
    later = recipes.change(config, {"evaluate.images": 12})
    shards = run_folder.shards_of(run_dir)
    train(later, Index.load(shards), shards, Stopping(run_dir, asked=9))
    score = Scores()
    evaluate_run(config, run_dir, score)
    assert score.calls == [("000000000256", 12)]
    events = {event["nimg"]: event["protocol"]["images"] for event in checkpoints(run_dir)}
    assert events == {64: 16, 128: 12, 192: 12, 256: 12}


def test_a_run_that_is_being_trained_is_left_alone(stopped: tuple[Config, Path]) -> None:
    config, run_dir = stopped
    with (
        run_folder.exclusive(run_dir),
        pytest.raises(UserError, match=r"being trained by process \d+ on "),
    ):
        evaluate_run(config, run_dir, Scores())


def test_a_damaged_checkpoint_is_passed_over(
    stopped: tuple[Config, Path], caplog: pytest.LogCaptureFixture
) -> None:
    config, run_dir = stopped
    weights = list_checkpoints(run_dir)[0] / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert waiting(run_dir) == []
    assert "generator.safetensors is not what was written" in caplog.text
    score = Scores()
    assert [row["kimg"] for row in evaluate_run(config, run_dir, score)] == [0.064]
    assert score.calls == []


def test_a_run_without_a_checkpoint_has_none_to_score(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path / "workspace")
    run_dir = run_folder.new(config, shard(config.data, config.workspace))
    with pytest.raises(UserError, match="no checkpoint to score"):
        evaluate_run(config, run_dir, Scores())
