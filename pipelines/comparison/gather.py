"""Gathers the facts of a comparison from the runs' event logs, records and checkpoints.

This file reads, and computes nothing but a grid of samples for each generator.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from gan_train import recipes
from gan_train.adversary import Adversary, Generates, task_of
from gan_train.images.grid import make_grid
from gan_train.inference import Generator
from gan_train.metrics.protocol import Protocol, comparable
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import newest_valid
from gan_train.runs.events import Event, read_events
from gan_train.training.optimizers import parameters_of
from pipelines.comparison.contest import Contestant
from pipelines.comparison.facts import Entry, Picture, Scored, duration
from pipelines.comparison.training_time import training_seconds

_SIDE = 1024
"""No grid is wider than this, in pixels."""
_COLUMNS, _ROWS = 8, 6
_NEAR = 0.97
"""A run that trained for this share of its budget in time counts as having used it."""


def entries(contestants: Sequence[Contestant]) -> tuple[Entry, ...]:
    """An entry for each training. One counts as failed if its protocol differs from that of the
    first of its task, because their scores must not be compared. Of each recipe, one training has
    samples: the first that is done, or else the first."""
    found: list[Entry] = []
    drawn: dict[str, Contestant] = {}
    for contestant in sorted(contestants, key=lambda c: not c.record.done):  # sorting is stable
        drawn.setdefault(contestant.config.name, contestant)
    for contestant in contestants:
        entry = _entry(contestant, picture=drawn[contestant.config.name] is contestant)
        rivals = (e for e in found if e.task == entry.task and e.protocol and not e.error)
        first = next(rivals, None)
        if first is not None and entry.protocol and not entry.error:
            why = comparable(first.protocol, entry.protocol)
            if why is not None:
                error = f"its scores cannot be compared with those of {first.label}: {why}"
                entry = entry.model_copy(update={"error": error})
        found.append(entry)
    return tuple(found)


def _entry(contestant: Contestant, picture: bool) -> Entry:
    config, run_dir = contestant.config, contestant.run_dir
    adversary = config.family.build(contestant.index.image_shape, config.train.batch)
    generator, others = parameter_counts(adversary)
    events = read_events(run_dir)
    nimg = run_folder.reached(events)
    memory = [e["values"]["memory_gib"] for e in events if e["kind"] == "metrics"]
    seconds = training_seconds(events, nimg)
    return Entry(
        recipe=config.name,
        seed=config.seed if contestant.training.several else None,
        family=config.family.name,
        task=task_of(adversary),
        run=run_dir.name,
        workers=config.cluster.workers,
        batch=config.train.batch,
        generator_parameters=generator,
        other_parameters=others,
        kimg=nimg / 1000,
        minutes=seconds / 60,
        memory_gib=max(memory, default=None),
        checkpoints=checkpoints(events),
        lengths=contestant.record.lengths,
        protocol=_protocol(events),
        notes=tuple(notes(contestant, adversary, events)),
        picture=_picture(contestant, adversary) if picture else None,
        settings=recipes.dump(config),
        error=contestant.record.error,
    )


def parameter_counts(adversary: Adversary) -> tuple[int, int]:
    """The number of trained parameters in networks that make images (those with moving averages),
    and in the others. Frozen networks, such as those of content losses, do not count."""
    trained = {
        parameter
        for spec in adversary.optimizers().values()
        for parameter in parameters_of(adversary, spec)
    }
    making = {p for name in adversary.averaged for p in getattr(adversary, name).parameters()}
    inside = sum(p.numel() for p in trained & making)
    return inside, sum(p.numel() for p in trained) - inside


def checkpoints(events: Sequence[Event]) -> tuple[Scored, ...]:
    """The checkpoints that were scored, oldest first."""
    scored = {e["nimg"]: e["scores"] for e in events if e["kind"] == "checkpoint" and e["scores"]}
    return tuple(
        Scored(kimg=n / 1000, minutes=training_seconds(events, n) / 60, scores=scored[n])
        for n in sorted(scored)
    )


def _protocol(events: Sequence[Event]) -> Protocol:
    """How the newest scores were measured; empty where nothing was scored."""
    known = [e["protocol"] for e in events if e["kind"] == "checkpoint" and e.get("protocol")]
    return known[-1] if known else {}


def notes(contestant: Contestant, adversary: Adversary, events: Sequence[Event]) -> list[str]:
    """Sentences that a reader needs to judge the scores: whether the budget cut the schedule or
    outlasted it, and whether the generator had grown to its full resolution."""
    own = sum(stage.nimg for stage in adversary.stages()) / 1000
    nimg = run_folder.reached(events)
    kimg, minutes = nimg / 1000, training_seconds(events, nimg) / 60
    said = []
    if contestant.minutes is not None and minutes < _NEAR * contestant.minutes:
        if contestant.record.done:
            said.append(
                f"its schedule of {own:g} kimg ended after {duration(minutes)} of "
                f"{contestant.minutes:g} min, and training with it"
            )
    elif kimg < own:
        said.append(f"its schedule of {own:g} kimg was cut at {kimg:.4g} kimg")
    if kimg > own + contestant.config.train.batch / 1000:
        said.append(
            f"its schedule of {own:g} kimg ended before; the last stage went on to {kimg:.4g} kimg"
        )
    level = _level(events)
    resolution, alpha = level.get("resolution"), level.get("alpha", 1.0)
    full = contestant.config.data.resolution
    if resolution is not None and (resolution < full or alpha < 1):
        fade = f", faded in by {alpha:.0%}" if alpha < 1 else ""
        said.append(
            f"its generator had grown to {resolution:.0f} of {full} px{fade}"
            + (", and its images were upsampled to be scored" if resolution < full else "")
        )
    return said


def _level(events: Sequence[Event]) -> Mapping[str, Any]:
    """The newest checkpoint's event, which tells how far a growing generator has come."""
    saved = [event for event in events if event["kind"] == "checkpoint"]
    return saved[-1] if saved else {}


# ---- pictures ----------------------------------------------------------------------------------


def _picture(contestant: Contestant, adversary: Adversary) -> Picture | None:
    """Samples of the last checkpoint, from the same latents for every recipe. For a family
    that makes images from images, the run's newest grid, which shows both."""
    if isinstance(adversary, Generates):
        folder = newest_valid(contestant.run_dir)
        return None if folder is None else _samples(folder)
    path = run_folder.newest_grid(contestant.run_dir)
    if path is None:
        return None
    with Image.open(path) as grid:
        grid.thumbnail((_SIDE, 2 * _SIDE))
        return embedded(grid, f"The run's own grid at {int(path.stem) / 1000:g} kimg")


def _samples(checkpoint: Path) -> Picture:
    generator = Generator.load(checkpoint)
    side = generator.shape.resolution
    columns, rows = max(2, min(_COLUMNS, _SIDE // side)), max(2, min(_ROWS, _SIDE // side))
    count = columns * rows
    label = torch.arange(count) % max(1, len(generator.shape.classes))
    images = generator.images(
        generator.latents(range(count)), label if generator.conditional else None
    )
    what = "a class after the other" if generator.conditional else "not chosen"
    text = f"{count} samples of seeds 0 to {count - 1}, {what}, not truncated"
    return embedded(make_grid(images, columns), text)


def embedded(picture: Image.Image, text: str) -> Picture:
    """A picture as a page carries it; `text` says what it shows."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    png = base64.b64encode(buffer.getvalue()).decode()
    return Picture(png=png, width=picture.width, height=picture.height, text=text)
