"""Makes scores and sample grids of a generator in training, or of a stored checkpoint."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gan_train import recipes
from gan_train.adversary import Adversary, Clock, Generates, Task, task_of
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.errors import UserError
from gan_train.files.atomic import remove_leftovers, write_json
from gan_train.images.grid import save_grid
from gan_train.images.origin import Origin, library
from gan_train.inference import Generator, read_description
from gan_train.metrics.protocol import comparable
from gan_train.metrics.scores import degenerate
from gan_train.nn.collectives import broadcast_text, from_first_worker
from gan_train.runs import checkpoint
from gan_train.runs.audit import GENERATOR, generator_damage
from gan_train.runs.integrity import REPORTED, Damaged, read_scores
from gan_train.runs.runtime import Runtime
from gan_train.tasks.generation import Generation
from gan_train.tasks.task import ImageTask, Setting
from gan_train.tasks.translation import Translation
from gan_train.tasks.upscaling import Upscaling

log = logging.getLogger(__name__)

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
        self._config, self._data = config, (index, shards)
        setting = Setting(config, index, shards, runtime, adversary)
        self.task = TASKS[task_of(adversary)](setting)

    def draw(self, clock: Clock, nimg: int) -> Path:
        """Write the sample grid after `nimg` images, at the resolution and fade of this clock, that
        of the last step."""
        self.adversary.advance(clock)
        images, columns = self.task.grid()
        run = self.runtime.run_dir.name[:500]
        origin = Origin(
            command="samples", gan_train=library(), run=run, images_seen=nimg, columns=columns
        )
        place = self.runtime.run_dir / "samples" / f"{nimg:012d}.png"
        return save_grid(images, columns, place, origin)

    def score(self, folder: Path) -> dict[str, Any]:
        """Score the current weights, which `folder` holds, unless its scores are stored already:
        `{"scores": ..., "protocol": ...}`. Collective. Rank 0 alone reads and writes the folder, so
        the workers need not share a disk."""
        path, known = folder / checkpoint.SCORES, ""
        if self.runtime.rank == 0:
            remove_leftovers(folder)
            stored = stored_scores(folder)
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
        """Score the current weights: `{"scores": ..., "protocol": ...}`, and, for a family that
        grows, `resolution` and `alpha`. Collective."""
        return self.task.measure() | self.adversary.status()

    def report_best(self) -> None:
        """Score the run's best checkpoint anew, on latents that did not choose it, and keep that
        beside its weights; unless that is done. Collective. Rank 0 alone reads and writes there.

        The lowest of several scores is low by luck, too: so it is not the score that is reported.
        """
        if not isinstance(self.adversary, Generates):
            return  # its scores are of given pictures, and would be the same
        config, folder = fresh_latents(self._config), None
        files = dict.fromkeys(GENERATOR, b"")
        if self.runtime.rank == 0:
            folder = self.best(self.runtime.run_dir)
            chosen = stored_scores(folder) if folder is not None else None
            if folder is not None and chosen and reported_scores(folder, chosen) is None:
                if damage := generator_damage(folder):
                    log.error("DAMAGED CHECKPOINT is not scored anew: %s: %s", folder, damage)
                else:
                    files = {name: (folder / name).read_bytes() for name in files}
        device = self.runtime.device
        files = {name: from_first_worker(data, device) for name, data in files.items()}
        if not all(files.values()):
            return
        with tempfile.TemporaryDirectory() as copy:
            for name, data in files.items():
                Path(copy, name).write_bytes(data)
            scored = evaluate_checkpoint(config, *self._data, Path(copy), self.runtime)
        if folder is not None:
            write_json(folder / REPORTED, scored)

    def best(self, run_dir: Path) -> Path | None:
        """The best scored checkpoint of a run by the task's metric; None if none is scored at the
        final resolution."""
        return best_checkpoint(run_dir, self.task.metric, self.adversary.shape.resolution)


def fresh_latents(config: Config) -> Config:
    """The configuration by which the best checkpoint is scored anew: on the sequence of latents
    behind the one that chooses it."""
    return recipes.change(config, {"evaluate.latents": config.evaluate.latents + 1})


def stored_scores(folder: Path, name: str = checkpoint.SCORES) -> dict[str, Any] | None:
    """The scores beside a checkpoint, in the file `name`; None where there are none, or, with an
    error in the log, where they are damaged: no weight depends on them, and they can be measured
    again."""
    try:
        return read_scores(folder, name)
    except Damaged as damage:
        log.error("DAMAGED SCORES of %s are dropped: %s", folder, damage)
        return None


def reported_scores(folder: Path, chosen: Mapping[str, Any]) -> dict[str, Any] | None:
    """The scores of a checkpoint on latents that did not choose it, measured in all else like the
    `chosen` ones; None where there are none."""
    found = stored_scores(folder, REPORTED)
    if found is None:
        return None
    latents = {key: value for key, value in found["protocol"].items() if key == "latents"}
    measured = {**(chosen.get("protocol") or {}), **latents}
    alike = comparable(measured, found["protocol"]) is None
    return found if alike else None


def best_checkpoint(run_dir: Path, metric: str, resolution: int | None = None) -> Path | None:
    """The checkpoint of a run whose score `metric` is lowest and finite; the earlier of equals.

    Degenerate ones never count (`metrics.scores.degenerate`), and of a family that grows only those
    of the final `resolution`.
    Only checkpoints whose protocol is comparable with the newest one's count, because a run may
    have been resumed under another protocol. The registry chooses in the same way.
    """
    found = []  # oldest first
    for folder in reversed(checkpoint.list_generators(run_dir)):
        scored = stored_scores(folder)
        if scored is not None and metric in scored["scores"]:
            found.append((scored, folder))
    alike = [
        (scored["scores"][metric], folder)
        for scored, folder in found
        if degenerate(scored["scores"]) is None
        and math.isfinite(scored["scores"][metric])
        and scored.get("resolution", resolution) == resolution
        and comparable(scored["protocol"], found[-1][0]["protocol"]) is None
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
