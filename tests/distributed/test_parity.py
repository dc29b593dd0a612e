"""One worker or several: the same training, and parameters that are the same bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gan_train.config import Config
from gan_train.data.sharding import shard
from gan_train.nn.collectives import assert_identical
from gan_train.runs.run_folder import SHARDS
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.verification import Row, repeat
from tests.training import run, run_workers, tiny_config, weights


def _train(config: Config, run_dir: Path) -> None:
    run(config, run_dir, PlainRuntime(run_dir))


@pytest.mark.parametrize("loss", ["wgan-gp", "logistic-r1"])
def test_workers_agree_with_one_at_the_same_global_batch(
    loss: str, tiny_source: Path, tmp_path: Path
) -> None:
    """Every phase, minibatch deviation and R1 included, to 1e-10 in float64 over both levels."""
    config = tiny_config(
        tiny_source, tmp_path, family__loss=loss, train__precision="float64", train__batch=16
    )
    one = weights(run(config, tmp_path / "one"))
    for world in (2, 4):
        several = tmp_path / f"several-{world}"
        run_workers(world, tmp_path, _train, config, several)
        for name, value in weights(several).items():
            torch.testing.assert_close(value, one[name], rtol=0, atol=1e-10, msg=name)


def test_accumulation_is_the_same_training(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path, train__precision="float64")
    whole = weights(run(config, tmp_path / "whole"))
    config = tiny_config(tiny_source, tmp_path, train__precision="float64", train__accumulate=4)
    for name, value in weights(run(config, tmp_path / "parts")).items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-10, msg=name)


def test_a_run_of_two_workers_is_replayed_by_two(tiny_source: Path, tmp_path: Path) -> None:
    """In float32, where one worker alone would round otherwise."""
    config = tiny_config(tiny_source, tmp_path, train__total_kimg=0.064)
    run_workers(2, tmp_path, _train, config, tmp_path / "two")
    (tmp_path / "two" / SHARDS).symlink_to(shard(config.data, config.workspace))
    assert list(repeat(tmp_path / "two")) == [Row(0, 64, 3, "")]


def _differ() -> None:
    x = torch.zeros(5)
    assert_identical([x], x.device)
    if torch.distributed.get_rank() == 1:
        x[3] = 1e-30
    try:
        assert_identical([x], x.device)
    except RuntimeError as error:
        assert "parameters differ" in str(error)
    else:
        raise AssertionError("a difference in one bit pattern went unseen")


def test_a_differing_worker_is_found(tmp_path: Path) -> None:
    run_workers(2, tmp_path, _differ)
