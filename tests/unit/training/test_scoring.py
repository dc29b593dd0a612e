"""Which checkpoint of a run is the best, and so is kept whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from gan_train.files.atomic import write_json
from gan_train.metrics.scores import degenerate
from gan_train.runs.checkpoint import ABANDONED, FOLDER, SCORES
from gan_train.training.scoring import best_checkpoint
from pipelines.registry import promotion


def scored(
    run_dir: Path,
    nimg: int,
    score: float,
    images: int = 8,
    metric: str = "fid",
    scores: Mapping[str, float] = MappingProxyType({}),
    **level: float,
) -> Path:
    folder = run_dir / FOLDER / f"{nimg:012d}"
    folder.mkdir(parents=True)
    write_json(
        folder / SCORES,
        {"scores": {metric: score, **scores}, "protocol": {"images": images}, **level},
    )
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


@pytest.mark.fault(
    "a complete collapse: all samples alike, with a low distance",
    "the score is degenerate, loudly: never the best checkpoint, never registered",
)
def test_a_collapse_is_never_the_best(tmp_path: Path) -> None:
    best = scored(tmp_path, 1, 50.0, scores={"pair_distance": 3.0, "pair_distance_real": 9.0})
    scored(tmp_path, 2, 1.0, scores={"pair_distance": 0.0, "pair_distance_real": 9.0})
    assert best_checkpoint(tmp_path, "fid") == best
    alike = {"kind": "checkpoint", "nimg": 2, "scores": {"fid": 1.0, "pair_distance": 0.0}}
    assert promotion.best_checkpoint([alike]) is None
    assert "degenerate: all samples are alike" in promotion.why_none([alike], "run", 8)


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        ({"fid": 1.0, "pair_distance": 0.1}, None),
        ({"fid": 1.0, "pair_distance": 0.0}, "all samples are alike"),
        ({"fid": 1.0, "pair_distance_to_B": 0.0}, "all samples are alike"),
        ({"fid": 1.0, "pair_distance": 0.0, "pair_distance_real": 0.0}, None),  # as the data are
        ({"fid": 1.0, "pair_distance": 1.0, "pair_distance_within_class": 0.0}, None),
        ({"fid": math.nan}, "fid is nan"),
        ({"kid": math.nan}, None),  # does not decide
        ({}, None),
    ],
)
def test_degenerate(scores: dict[str, float], why: str | None) -> None:
    found = degenerate(scores)
    assert found is None if why is None else found is not None and why in found


def test_only_the_final_resolution_of_a_growing_family_counts(tmp_path: Path) -> None:
    scored(tmp_path, 1, 1.0, resolution=8.0, alpha=1.0)
    assert best_checkpoint(tmp_path, "fid", 32) is None
    best = scored(tmp_path, 2, 3.0, resolution=32.0, alpha=0.5)
    scored(tmp_path, 3, 4.0, resolution=32.0, alpha=1.0)
    assert best_checkpoint(tmp_path, "fid", 32) == best

    def event(nimg: int, score: float, resolution: float) -> dict[str, Any]:
        scores = {"kind": "checkpoint", "nimg": nimg, "scores": {"fid": score}}
        return scores | {"resolution": resolution}

    small, large = event(1, 1.0, 8.0), event(2, 3.0, 32.0)
    assert promotion.best_checkpoint([small, large], 32) == large
    assert promotion.best_checkpoint([small, large]) == large, "the highest one, unless asked"
    assert promotion.best_checkpoint([small], 32) is None
    assert promotion.best_checkpoint([small]) == small
    assert "has grown to 8 of 32 px" in promotion.why_none([small], "run", 32)
