"""Makes scores and sample grids of a generator in training, or of a stored checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gan_train.adversary import Adversary, Clock, Task, task_of
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.errors import UserError
from gan_train.files.atomic import read_json, write_json
from gan_train.images.grid import save_grid
from gan_train.inference import Generator, read_description
from gan_train.metrics.protocol import comparable
from gan_train.nn.collectives import broadcast_text
from gan_train.runs import checkpoint
from gan_train.runs.runtime import Runtime
from gan_train.tasks.generation import Generation
from gan_train.tasks.task import ImageTask, Setting
from gan_train.tasks.translation import Translation
from gan_train.tasks.upscaling import Upscaling

TASKS: dict[Task, Callable[[Setting], ImageTask]] = {
    "generate": Generation,
    "upscale": Upscaling,
    "translate": Translation,
}


class Scorer:
    """Draws and scores the images of one adversary, whose weights may change between calls."""

    def __init__(
        self, config: Config, index: Index, shards: Path, runtime: Runtime, adversary: Adversary
    ) -> None:
        self.runtime, self.adversary = runtime, adversary
        setting = Setting(config, index, shards, runtime, adversary)
        self.task = TASKS[task_of(adversary)](setting)

    def draw(self, clock: Clock, name: str) -> Path:
        """Write the sample grid, at the resolution and fade of this clock."""
        self.adversary.advance(clock)
        images, columns = self.task.grid()
        return save_grid(images, columns, self.runtime.run_dir / "samples" / name)

    def score(self, folder: Path) -> dict[str, Any]:
        """Score the current weights, which `folder` holds, unless its scores are stored already:
        `{"scores": ..., "protocol": ...}`. Collective. Rank 0 alone reads and writes the folder, so
        the workers need not share a disk."""
        path, known = folder / checkpoint.SCORES, ""
        if self.runtime.rank == 0:
            stored = read_json(path) if path.exists() else None
            known = json.dumps([read_description(folder)["clock"], stored])
        clock, scored = json.loads(broadcast_text(known, self.runtime.device))
        self.adversary.advance(Clock(**clock))
        if scored is None:
            scored = self.measure()
            if self.runtime.rank == 0:
                write_json(path, scored)
        found: dict[str, Any] = scored
        return found

    def measure(self) -> dict[str, Any]:
        """Score the current weights: `{"scores": ..., "protocol": ...}`. Collective."""
        return self.task.measure()

    def best(self, run_dir: Path) -> Path | None:
        """The best scored checkpoint of a run by the task's metric; None if none is scored."""
        return best_checkpoint(run_dir, self.task.metric)


def best_checkpoint(run_dir: Path, metric: str) -> Path | None:
    """The checkpoint of a run whose score `metric` is lowest and finite; the earlier of equals.

    Only checkpoints whose protocol is comparable with the newest one's count, because a run may
    have been resumed under another protocol. The registry chooses in the same way.
    """
    found = []  # oldest first: score, protocol, folder
    for folder in reversed(checkpoint.list_generators(run_dir)):
        if (folder / checkpoint.SCORES).exists():
            scored = read_json(folder / checkpoint.SCORES)
            if metric in scored["scores"]:
                found.append((scored["scores"][metric], scored["protocol"], folder))
    alike = [
        (score, folder)
        for score, protocol, folder in found
        if math.isfinite(score) and comparable(protocol, found[-1][1]) is None
    ]
    return min(alike)[1] if alike else None


def evaluate_checkpoint(
    config: Config, index: Index, shards: Path, folder: Path, runtime: Runtime
) -> dict[str, Any]:
    """Score the generator in a folder (a checkpoint, or a downloaded model) by `config.evaluate`.
    Nothing is written into the folder."""
    generator = Generator.load(folder, str(runtime.device))
    if generator.shape != index.image_shape:
        raise UserError(
            f"{folder} makes {generator.shape}, the shards hold {index.image_shape}: scores across "
            "data sets are not comparable"
        )
    return Scorer(config, index, shards, runtime, generator.adversary).measure()
