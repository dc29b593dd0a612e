"""Plans the shards of a data set: which image goes into which shard.

Nothing is written here, but what is remembered of the source and of sets in a bucket.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from gan_train.config import DataConfig
from gan_train.data import growth
from gan_train.data.images import Transform
from gan_train.data.index import Part, shard_name
from gan_train.data.selection import FORMAT, BadFile, Chosen, arrange, choose
from gan_train.data.sources import SourceFile, list_source, local_place, trusted_since
from gan_train.files.store import Store

_PIXELS = {"resolution", "colour", "resize", "crop", "background", "classes", "only_classes"}

log = logging.getLogger(__name__)


class PlannedImage(NamedTuple):
    """A file to store, and its label, which is 0 for unlabelled data."""

    file: SourceFile
    label: int
    second: bool = False  # whether the file lies in the second source


@dataclass(frozen=True)
class ShardPlan:
    """The plan of `plan_shards`: which image goes into which shard. It holds no open files, so it
    can be sent to other processes.

    `parts` has the images of each part in their stored order, which is cut into shards of
    `shard_images`. Each image of a part in `matched` has a partner, at the same place of another
    part. `rejected` lists the files that are no images by their names, or lie in no class folder.
    `done` has the numbers of shards that have a receipt; the plan has not verified them. The folder
    `memory` records when shards were verified. A record from before `since`, in seconds since 1970,
    does not count; with `verify`, `since` is the time at which the plan was made.

    A set that grows (see `growth.py`) has a `lineage`. `before` has the plans of the sets that it
    grew from, oldest first; `parts` then has the images that it adds. `fault` says why it does not
    grow from the newest one, where that is so.
    """

    sources: tuple[Path, ...]
    directory: Path
    fingerprint: str
    parts: dict[Part, tuple[PlannedImage, ...]]
    matched: tuple[Part, ...]
    rejected: tuple[BadFile, ...]
    classes: tuple[str, ...]
    transform: Transform
    identity: dict[str, Any]
    shard_images: int
    max_bad_fraction: float
    done: tuple[int, ...]
    memory: Path
    since: float
    verify: bool
    lineage: str = ""
    before: tuple[ShardPlan, ...] = ()
    fault: str = ""

    @property
    def additions(self) -> tuple[ShardPlan, ...]:
        """The plans of the sets that this one grew from, and this one."""
        return (*self.before, self)

    @property
    def sizes(self) -> dict[Part, int]:
        """The number of images in each part. Files that turn out to be bad will not be stored."""
        sizes = Counter[Part]()
        for one in self.additions:
            sizes.update({part: len(images) for part, images in one.parts.items()})
        return dict(sizes)

    @property
    def images(self) -> int:
        """The number of images in the plan."""
        return sum(self.sizes.values())

    @property
    def shards(self) -> int:
        """The number of shards, which is that of `tasks`."""
        lengths = (len(images) for one in self.additions for images in one.parts.values())
        return sum(-(-length // self.shard_images) for length in lengths)

    def tasks(self) -> Iterator[ShardTask]:
        """The tasks of all shards, by ascending number. Those of earlier sets lie in their
        folders."""
        places = (
            (one, part, begin)
            for one in self.additions
            for part, images in one.parts.items()
            for begin in range(0, len(images), self.shard_images)
        )
        for number, (one, part, begin) in enumerate(places):
            yield ShardTask(
                number=number,
                part=part,
                entries=one.parts[part][begin : begin + self.shard_images],
                sources=self.sources,
                labelled=bool(self.classes),
                transform=self.transform,
                directory=one.directory,
                fingerprint=one.fingerprint,
                memory=one.memory,
                since=self.since,
            )


@dataclass(frozen=True)
class ShardTask:
    """What `write_shard` must know of one shard: some fields of the plan, and the images. Other
    processes are sent this and not the plan, which lists every image of the data set."""

    number: int
    part: Part
    entries: tuple[PlannedImage, ...]
    sources: tuple[Path, ...]
    labelled: bool
    transform: Transform
    directory: Path
    fingerprint: str
    memory: Path
    since: float


def plan_shards(
    config: DataConfig,
    directory: Path | None,
    workspace: Path,
    *,
    store: str | None = None,
    verify: bool = False,
) -> ShardPlan:
    """List the sources and decide which image goes into which shard.

    This writes no shard, but to `workspace/sources` the checksums of a folder's or tar's files, and
    a compressed tar in plain form. Files that were read in the last `data.verify_days` and have not
    changed are not read again, neither here nor by the functions that take the plan; with `verify`
    all are read. `store` is the address of a workspace in a bucket, whose copy `workspace` then is.

    The shards go to `directory`, or to `workspace/shards/<fingerprint>`. With `classes: folder`
    the class of an image is the name of its folder, and an image outside of the class folders is
    rejected. Raises UserError for a source that is missing, unsafe or holds no such images.
    """
    origins = [(config.source, config.only_classes)]
    if config.second is not None:
        origins.append((config.second.source or config.source, config.second.only_classes))
    since = time.time() if verify else trusted_since(config.verify_days)
    lists = {
        place: list_source(local_place(place), workspace, since, store) for place, _ in origins
    }
    sources, listed = zip(*(lists[place] for place, _ in origins), strict=True)
    chosen, rejected = [], list[BadFile]()
    for place, only_classes in origins:
        images, bad = choose(lists[place][1], place, config.classes, only_classes)
        chosen.append(images)
        rejected += [file for file in bad if file not in rejected]
    classes = tuple(sorted({name for _, name in chosen[0] if name is not None}))
    parts = _planned(config, classes, chosen[0], chosen[1] if config.second else None)

    transform = Transform.of(config)
    identity = config.model_dump(mode="json", include=_PIXELS)
    if len(sources) > 1 or config.held_out:
        identity |= config.model_dump(
            mode="json", include={"held_out": True, "second": {"only_classes", "pairs"}}
        )
    recipe = [FORMAT, identity, config.shard_images, config.max_pixels]
    fingerprint = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    for files in listed:
        for file in files:  # its content counts, not its place: a zip and its tar are the same data
            fingerprint.update(f"[{json.dumps(file.path)}, {file.size}, {file.crc}]".encode())
    name = fingerprint.hexdigest()[:16]
    sets = workspace.resolve() / "shards"
    plan = ShardPlan(
        sources=sources,
        directory=sets / name,
        fingerprint=name,
        parts=parts,
        matched=_matched(config, parts),
        rejected=tuple(rejected),
        classes=classes,
        transform=transform,
        identity=identity,
        shard_images=config.shard_images,
        max_bad_fraction=config.max_bad_fraction,
        done=(),
        memory=workspace.resolve() / "verified" / name,
        since=since,
        verify=verify,
        lineage=growth.lineage_of(recipe, config.source) if config.grow else "",
    )
    if config.grow:
        if store is not None:
            growth.bring(sets, Store(store) / sets.name)
        plan = _grown(plan, config, chosen[0])
    if directory is not None:
        plan = replace(plan, directory=directory.resolve())
    done = (t.number for t in plan.tasks() if receipt_path(t.directory, t.number).exists())
    return replace(plan, done=tuple(done))


def _matched(config: DataConfig, parts: Iterable[Part]) -> tuple[Part, ...]:
    """The parts whose images have partners at the same places of another part."""
    pairs = config.second.pairs if config.second is not None else "none"
    return tuple(
        part
        for part in parts
        if pairs == "training" or (pairs == "names" and part.endswith("held_out"))
    )


def _planned(
    config: DataConfig,
    classes: tuple[str, ...],
    first: Sequence[Chosen],
    second: Sequence[Chosen] | None = None,
) -> dict[Part, tuple[PlannedImage, ...]]:
    """The parts of images that are sharded at one time."""
    labels = {name: label for label, name in enumerate(classes)}
    return {
        part: tuple(
            PlannedImage(file, labels.get(name or "", 0), part.startswith("B"))
            for file, name in images
        )
        for part, images in arrange(config, first, second).items()
    }


def _grown(plan: ShardPlan, config: DataConfig, images: Sequence[Chosen]) -> ShardPlan:
    """The plan of the same images as a set that grows from an earlier one, if there is one."""
    sets = plan.directory.parent
    past = growth.history(sets, plan.lineage, images, plan.classes)
    steps = list(past.additions)
    fault = past.fault
    if fault:
        instead = "an earlier one grows" if steps else "all images are sharded anew"
        fault = f"the newest set does not grow ({fault}): {instead}"
        log.warning("%s", fault)
    if steps and past.new:
        name = growth.fingerprint_of(steps[-1].fingerprint, past.new)
        steps.append(growth.Addition(name, past.new))
    plans = [
        replace(
            plan,
            directory=sets / name,
            fingerprint=name,
            parts=_planned(config, plan.classes, added),
            memory=plan.memory.with_name(name),
        )
        for name, added in steps
    ]
    *before, last = plans or [plan]
    return replace(last, before=tuple(before), fault=fault)


def receipt_path(directory: Path, number: int) -> Path:
    """Where the receipt of a shard lies: beside its tar."""
    return (directory / shard_name(number)).with_suffix(".json")
