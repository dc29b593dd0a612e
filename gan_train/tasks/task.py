"""What `training/scoring.py` needs of each task: images to look at, and scores.

The feature networks for the scores are built here, from the configuration, which
`gan_train/metrics` does not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from gan_train import recipes
from gan_train.adversary import Adversary
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.metrics.evaluator import Evaluator, needs_features
from gan_train.metrics.extractors import Extractor, build_extractor, identify
from gan_train.metrics.perceptual import Perceptual, build_perceptual
from gan_train.metrics.real import RankShare
from gan_train.runs.runtime import Runtime

SHIPPED_STATISTICS = recipes.SHIPPED.parent / "sample_data" / "statistics"
"""The folder with the sample data's statistics."""


@dataclass(frozen=True)
class Setting:
    """What is scored, on which data, and where. The weights of `adversary` may change between
    scores."""

    config: Config
    index: Index
    shards: Path
    runtime: Runtime
    adversary: Adversary

    @property
    def cache(self) -> Path:
        """The folder for the statistics of real images, and for downloaded weights."""
        return self.config.workspace / "statistics"

    @property
    def share(self) -> RankShare:
        """This worker's part of the scoring."""
        runtime = self.runtime
        return RankShare(
            runtime.rank, runtime.world_size, runtime.device, self.config.evaluate.batch
        )


def extractor_of(setting: Setting) -> Extractor | None:
    """The configured feature network, loaded; None where pixels alone are measured."""
    evaluate = setting.config.evaluate
    if not needs_features(evaluate.metrics):
        return None
    return build_extractor(
        evaluate.extractor,
        evaluate.weights,
        evaluate.sha256,
        setting.cache,
        setting.runtime.device,
    )


def evaluator_of(
    setting: Setting, extractor: Extractor | None, index: Index, images: int
) -> Evaluator:
    """The evaluator for the configured metrics, for images like those of `index`; N is at most
    `images`."""
    evaluate = setting.config.evaluate
    return Evaluator(
        extractor.identity
        if extractor is not None
        else identify(evaluate.extractor, evaluate.weights, evaluate.sha256, setting.cache),
        extractor,
        evaluate.metrics,
        images,
        index,
        setting.shards,
        setting.cache,
        setting.share,
        SHIPPED_STATISTICS,
    )


def perceptual_of(setting: Setting) -> Perceptual:
    """The configured perceptual distance, loaded."""
    evaluate = setting.config.evaluate
    return build_perceptual(
        evaluate.perceptual,
        evaluate.perceptual_weights,
        evaluate.perceptual_sha256,
        setting.cache,
        setting.runtime.device,
    )


def rounded(blocks: Sequence[float]) -> list[float]:
    """The influences of blocks in four digits: they are stored, and only correlated."""
    return [float(f"{block:.4g}") for block in blocks]


class ImageTask(Protocol):
    """One of generate, upscale and translate. Random numbers depend only on the seed and the place
    of an image, so they are the same for every checkpoint and any number of workers."""

    metric: str
    """The name of the score that decides which checkpoint is best; lower is better."""

    def grid(self) -> tuple[Tensor, int]:
        """Images uint8 [n, C, R, R] to look at, and how many stand in a row."""

    def measure(self) -> dict[str, Any]:
        """Score the current weights: `{"scores": ..., "protocol": ..., "blocks": ...}`, where
        `blocks` are those of the score that decides (`scores.Estimate`). Collective."""

    def rehearse(self, count: int) -> None:
        """Do what scoring does for each image, for so many of them, without the data set."""
