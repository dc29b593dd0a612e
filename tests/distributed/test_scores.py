"""One worker or several: the same scores, and the same real statistics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gan_train.config import DataConfig, EvaluateConfig
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.metrics.evaluator import Evaluator
from gan_train.metrics.extractors import EFFICIENTNET, EfficientNetExtractor
from gan_train.metrics.frechet import Moments
from gan_train.metrics.real import RankShare, read_places
from tests.training import run_workers

IMAGES = 56  # a group and three quarters: uneven shares, and nothing for a third worker


def _score(shards: Path, cache: Path, results: Path) -> None:
    """Score real images further on, noting which images this worker made."""
    rank, world = 0, 1
    if torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    index = Index.load(shards)
    made: list[int] = []

    def generate(positions: Tensor) -> tuple[Tensor, Tensor | None]:
        made.extend(positions.tolist())
        return read_places(index, shards, positions + IMAGES // 2)

    metrics, cpu = EvaluateConfig().metrics, torch.device("cpu")
    sides = EFFICIENTNET, EfficientNetExtractor(cpu), metrics, IMAGES
    evaluator = Evaluator(*sides, index, shards, cache, RankShare(rank, world, cpu, batch=11))
    scores = evaluator.score(generate)
    results.mkdir(exist_ok=True)
    (results / f"{rank}.json").write_text(json.dumps([made, scores]))


def _results(folder: Path) -> tuple[list[list[int]], list[dict[str, float]]]:
    found = [json.loads(path.read_text()) for path in sorted(folder.iterdir())]
    return [made for made, _ in found], [scores for _, scores in found]


@pytest.mark.slow
def test_scores_are_the_same_for_any_number_of_workers(glyphs: Path, tmp_path: Path) -> None:
    config = DataConfig(
        source=str(glyphs), resolution=32, colour="grey", classes="folder", only_classes=("A", "B")
    )
    shards = shard(config, tmp_path / "shards")
    _score(shards, tmp_path / "cache-1", tmp_path / "one")
    _, (one,) = _results(tmp_path / "one")
    assert {"fd_efficientnet_lite0", "class_accuracy", "pair_distance_within_class"} <= set(one)
    run_workers(3, tmp_path, _score, shards, tmp_path / "cache-3", tmp_path / "three")
    made, three = _results(tmp_path / "three")
    assert sorted(place for part in made for place in part) == list(range(IMAGES))
    assert three[0] == three[1] == three[2] == pytest.approx(one, rel=1e-4, abs=1e-6)

    # and from statistics that another number of workers left behind, read by rank 0 alone
    run_workers(2, tmp_path, _score, shards, tmp_path / "cache-1", tmp_path / "two")
    _, two = _results(tmp_path / "two")
    assert two[0] == two[1] == pytest.approx(one, rel=1e-4, abs=1e-6)


def _sum_moments() -> None:
    rank = torch.distributed.get_rank()
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = Moments(5)
    moments.update(x[:7] if rank == 0 else x[7:])
    moments.all_reduce()
    mean, covariance = moments.mean_and_covariance()
    torch.testing.assert_close(mean, x.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(covariance, torch.cov(x.T), rtol=1e-12, atol=1e-12)


def test_moments_are_summed_in_float64(tmp_path: Path) -> None:
    run_workers(2, tmp_path, _sum_moments)
