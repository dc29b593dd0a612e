"""Luck and progress, by real trainings: who becomes champion of twenty that differ in their seed
alone, and whether twice the images pass."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from gan_train import recipes
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.runs.checkpoint import list_checkpoints
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.scoring import evaluate_checkpoint, fresh_latents
from gan_train.training.trainer import train
from pipelines.registry.evidence import deviation_of
from pipelines.registry.promotion import CHAMPION, Standing, decide, event_standing

KIMG, SEEDS, LONGER = 20.0, 20, 5


def trained(folder: Path, kimg: float, seed: int) -> Standing:
    """The score of a small DCGAN on the sample data's glyphs, some seconds after its beginning."""
    torch.set_num_threads(1)
    overrides = {
        "workspace": folder / "work",
        "seed": seed,
        "data.resolution": 16,
        "family.channels": 8,
        "train.precision": "float32",
        "train.total_kimg": kimg,
        "train.tick_kimg": 2,
        "train.sample_kimg": 1000,
        "train.checkpoint_kimg": 1000,
        "evaluate.images": 400,
        "evaluate.metrics": "[diversity]",  # there is one checkpoint, and nothing to choose
    }
    config = recipes.load("dcgan-glyphs", [f"{key}={value}" for key, value in overrides.items()])
    shards = shard(config.data, config.workspace)
    runtime = PlainRuntime(folder / f"{kimg:g}-{seed}")
    runtime.run_dir.mkdir()
    index = Index.load(shards)
    train(config, index, shards, runtime)
    fresh = fresh_latents(recipes.change(config, {"evaluate.metrics": ["frechet"]}))
    (checkpoint,) = list_checkpoints(runtime.run_dir)
    scored = evaluate_checkpoint(fresh, index, shards, checkpoint, runtime)
    standing = event_standing({"nimg": round(1000 * kimg), **scored})
    assert standing is not None and standing.error is not None and len(standing.blocks) == 40
    return standing


def reigns(standings: list[Standing]) -> list[Standing]:
    """The champions of trainings that are promoted one after another, by the gate."""
    champions = [standings[0]]
    for place, standing in enumerate(standings[1:], 2):
        known = deviation_of([[one.value for one in standings[:place]]])
        if decide(standing, champions[-1], known).alias == CHAMPION:
            champions.append(standing)
    return champions


def records(standings: list[Standing]) -> int:
    """How often a score is the lowest so far: the champions of a gate that takes the lower one."""
    values = [standing.value for standing in standings]
    return sum(value == min(values[: place + 1]) for place, value in enumerate(values))


def orders(standings: list[Standing], count: int) -> list[list[Standing]]:
    shuffled = random.Random(0)
    return [shuffled.sample(standings, len(standings)) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.long
def test_luck_does_not_pass_and_progress_does(tmp_path: Path) -> None:
    equal = [trained(tmp_path, KIMG, seed) for seed in range(SEEDS)]
    longer = [trained(tmp_path, 2 * KIMG, seed) for seed in range(LONGER)]
    assert len(reigns(equal)) <= 2
    counted = [len(reigns(order)) for order in orders(equal, 300)]
    assert sum(counted) / len(counted) < 1.7
    scores, champion = [one.value for one in equal], reigns(equal)[-1]
    for standing in longer:
        decision = decide(standing, champion, deviation_of([scores]), scores)
        assert decision.alias == CHAMPION, decision.reason
