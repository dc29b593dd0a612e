"""Scores and sample grids of a generator in training, or of a checkpoint on its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gan_train import checkpoint
from gan_train.adversary import Adversary, Clock
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.errors import UserError
from gan_train.grid import save_grid
from gan_train.inference import Generator, to_uint8
from gan_train.metrics.collect import draw_classes
from gan_train.metrics.evaluator import Evaluator
from gan_train.metrics.path_length import PathLengths
from gan_train.metrics.real import Share
from gan_train.rng import BatchRandom
from gan_train.runtime import Runtime


def grid_size(resolution: int) -> tuple[int, int]:
    """Columns and rows of a sample grid: 10 x 8, fewer where the picture would pass 2560 x 2048."""
    return max(3, min(10, 2560 // resolution)), max(2, min(8, 2048 // resolution))


class Scorer:
    """Draws and scores the images of one adversary, whose weights may change between calls.

    The latents of image number p are a function of (seed, p): the same for every checkpoint and
    any number of workers.
    """

    def __init__(
        self, config: Config, index: Index, shards: Path, runtime: Runtime, adversary: Adversary
    ) -> None:
        self.config, self.runtime, self.adversary = config, runtime, adversary
        self.class_counts = torch.tensor(index.class_counts, device=runtime.device)
        evaluate, cache = config.evaluate, config.workspace / "statistics"
        device, rank, world_size = runtime.device, runtime.rank, runtime.world_size
        self.evaluator = Evaluator(evaluate, index, shards, cache, device, rank, world_size)
        self.path_lengths: PathLengths | None = None
        if "path_length" in evaluate.metrics:
            share = Share(rank, world_size, device, evaluate.batch)
            self.path_lengths = PathLengths(
                evaluate, adversary, self.class_counts, cache, config.seed, share
            )

    @torch.inference_mode()
    def generate(self, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 [n, C, R, R] and classes [n]: the images at these places of the evaluation.

        Classes are asked for as often as the data has them.
        """
        rng = BatchRandom(self.config.seed, "evaluate", positions.to(self.runtime.device))
        z, label = rng.normal(self.adversary.z_dim), None
        if self.adversary.conditional:
            label = draw_classes(rng, self.class_counts)
        return to_uint8(self.adversary.sample(z, label), self.adversary.shape.resolution), label

    @torch.inference_mode()
    def draw(self, clock: Clock, name: str) -> Path:
        """Write the sample grid as trained at this clock, from fixed latents.

        With classes, a class a column: the first of them, where there are more than columns.
        """
        self.adversary.advance(clock)
        device, shape = self.runtime.device, self.adversary.shape
        columns, rows = grid_size(shape.resolution)
        if self.adversary.conditional:
            columns = max(1, min(len(shape.classes), 2560 // shape.resolution, 26))
        positions = torch.arange(columns * rows, device=device)
        z = BatchRandom(self.config.seed, "grid", positions).normal(self.adversary.z_dim)
        label = positions % columns if self.adversary.conditional else None
        images = to_uint8(self.adversary.sample(z, label), shape.resolution)
        path = self.runtime.run_dir / "samples" / name
        return save_grid(images, columns, path)

    def score(self, folder: Path) -> dict[str, Any]:
        """`{"scores": ..., "protocol": ...}` of a checkpoint's weights, computed at most once.

        Collective. Rank 0 leaves the result beside the weights.
        """
        path = folder / checkpoint.SCORES
        if path.exists():
            scored: dict[str, Any] = checkpoint.read_json(path)
            return scored
        self.adversary.advance(Clock(**checkpoint.read_json(folder / "generator.json")["clock"]))
        scored = self.measure()
        if self.runtime.rank == 0:
            checkpoint.write_json(path, scored)
        return scored

    def measure(self) -> dict[str, Any]:
        """`{"scores": ..., "protocol": ...}` of the weights as they are. Collective."""
        scores: dict[str, float] = {}
        protocol = self.evaluator.protocol()
        if set(self.config.evaluate.metrics) != {"path_length"}:  # which needs no other images
            scores |= self.evaluator.score(self.generate)
        if self.path_lengths is not None:
            scores |= self.path_lengths.measure()
            protocol |= self.path_lengths.protocol()
        return {"scores": scores, "protocol": protocol}

    def best(self, run_dir: Path) -> Path | None:
        """The checkpoint with the lowest Fréchet distance among those scored by this protocol."""
        return best_checkpoint(run_dir, self.evaluator.metric)


def best_checkpoint(run_dir: Path, metric: str) -> Path | None:
    """The scored checkpoint of a run whose `metric` is lowest; one that is no number never is."""
    found = []
    for path in sorted((run_dir / checkpoint.FOLDER).glob(f"*/{checkpoint.SCORES}")):
        score = checkpoint.read_json(path)["scores"].get(metric, math.nan)
        if not math.isnan(score):
            found.append((score, path.parent))
    return min(found)[1] if found else None


def evaluate_checkpoint(
    config: Config, index: Index, shards: Path, folder: Path, runtime: Runtime
) -> dict[str, Any]:
    """Score a checkpoint or a download under `config.evaluate`, without writing to it."""
    generator = Generator.load(folder, str(runtime.device))
    if generator.shape != index.image_shape:
        raise UserError(
            f"{folder} makes {generator.shape}, the shards hold {index.image_shape}: scores across "
            "data sets are not comparable"
        )
    return Scorer(config, index, shards, runtime, generator.adversary).measure()
