"""Which checkpoint of a run is the best, and so is kept whole."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gan_train.files.atomic import write_json
from gan_train.runs.checkpoint import ABANDONED, FOLDER, SCORES
from gan_train.training.scoring import best_checkpoint


def scored(run_dir: Path, nimg: int, score: float, images: int = 8, metric: str = "fid") -> Path:
    folder = run_dir / FOLDER / f"{nimg:012d}"
    folder.mkdir(parents=True)
    write_json(folder / SCORES, {"scores": {metric: score}, "protocol": {"images": images}})
    return folder


@pytest.mark.parametrize("worst", [math.nan, math.inf])
def test_the_lowest_finite_score_is_the_best(worst: float, tmp_path: Path) -> None:
    assert best_checkpoint(tmp_path, "fid") is None
    scored(tmp_path, 1, worst)
    assert best_checkpoint(tmp_path, "fid") is None
    best = scored(tmp_path, 2, 3.0)
    scored(tmp_path, 3, 3.0)
    scored(tmp_path, 4, 2.0, metric="kid")
    (scored(tmp_path, 5, 1.0) / ABANDONED).touch()
    assert best_checkpoint(tmp_path, "fid") == best


def test_only_those_scored_like_the_newest_count(tmp_path: Path) -> None:
    """After `evaluate.images` was changed on resume: fewer images give a larger distance."""
    scored(tmp_path, 1, 1.0, images=64)
    best = scored(tmp_path, 2, 3.0, images=8)
    scored(tmp_path, 3, 4.0, images=8)
    assert best_checkpoint(tmp_path, "fid") == best
    newest = scored(tmp_path, 4, math.nan, images=16)
    assert best_checkpoint(tmp_path, "fid") is None, newest
