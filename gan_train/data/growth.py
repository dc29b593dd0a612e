"""Remembers which images a stored set added to the one before, so that a set can grow.

With `data.grow`, every finished set has a record beside its index: the images that it added, and
the set that it added them to. The next plan looks for the newest set of the same settings and
source whose images are all in the source, unchanged. Its shards stay as they are, and only images
that it has not are sharded. Each set has a folder of its own, with links to the shards of earlier
sets, so that a run that trains on an earlier set finds it unchanged. With a workspace in a bucket,
the records are copied to whoever plans, and the links are a list (`shard_cache.py`).

What an addition holds, and in which order, depends on its images alone. So two places where the
same images came at the same times have the same shards. The content hash depends on these times: it
is not that of all images sharded at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from gan_train.data.selection import Chosen
from gan_train.files.atomic import read_json, write_aside, write_json
from gan_train.files.locks import locked
from gan_train.files.store import Store, origin_of, path_of

if TYPE_CHECKING:
    from gan_train.data.planning import ShardPlan

RECORD_NAME = "addition.jsonl"
_TAGS = "records.json"


class Addition(NamedTuple):
    """Images that were sharded at one time: the fingerprint of the set that they made, and they."""

    fingerprint: str
    images: tuple[Chosen, ...]


class History(NamedTuple):
    """From which set a new one grows, and why not from the newest one.

    `additions` made that set, oldest first; there are none where all has to be sharded. `new` has
    the images that it has not. `fault` says what is wrong with the newest set of the same settings
    and source; it is empty if nothing is, or if there is no such set.
    """

    additions: tuple[Addition, ...]
    new: tuple[Chosen, ...]
    fault: str


class _Head(BaseModel):
    """The first line of a record. A line for each image follows: path, size, CRC-32 and label."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    lineage: str
    before: str | None
    classes: tuple[str, ...]
    sha256: str  # of the lines that follow


def lineage_of(settings: object, source: str) -> str:
    """What the sets share that may grow from one another: a digest of all settings that decide
    what is stored, and of the place of the source."""
    path = path_of(source)
    place = source if path is None else str(path.expanduser().resolve())
    return hashlib.sha256(json.dumps([settings, place], sort_keys=True).encode()).hexdigest()


def fingerprint_of(before: str, images: Iterable[Chosen]) -> str:
    """The name of the set that these images, sorted by path, make of the set named `before`."""
    digest = hashlib.sha256(before.encode())
    for (path, size, crc, _), _ in images:
        digest.update(f"[{json.dumps(path)}, {size}, {crc}]".encode())
    return digest.hexdigest()[:16]


def history(
    sets: Path, lineage: str, images: Sequence[Chosen], classes: tuple[str, ...]
) -> History:
    """From which of the sets in the folder `sets` one with these images and classes grows."""
    labels = {name: label for label, name in enumerate(classes)}
    now = {
        image.file.path: (*image.file[1:3], labels.get(image.label or "", 0)) for image in images
    }
    heads = _heads(sets, lineage)
    added: dict[str, _Images] = {}
    faults = list[str]()
    for newest in heads:
        chain = _chain(newest, heads)
        for name in chain:
            if name in heads and name not in added:
                added[name] = _images(sets / name, heads[name])
        fault = _fault(chain, heads, added, now, classes)
        if not fault:
            image_of = {image.file.path: image for image in images}
            grown = [Addition(name, tuple(map(image_of.pop, added[name]))) for name in chain]
            return History(tuple(grown), tuple(image_of.values()), "".join(faults[:1]))
        faults.append(fault)
    return History((), tuple(images), "".join(faults[:1]))


def is_recorded(directory: Path, lineage: str) -> bool:
    """Whether the set in this folder has an undamaged record of this lineage."""
    head = _head(directory / RECORD_NAME)
    return head is not None and head.lineage == lineage and bool(_images(directory, head))


def bring(sets: Path, store: Store) -> None:
    """Make the records of the sets in the folder `sets` what they are in the store. Those that have
    not changed since they were brought are not read again."""
    sets.mkdir(parents=True, exist_ok=True)
    with locked(sets / ".lock"):
        known = read_json(sets / _TAGS) if (sets / _TAGS).exists() else {}
        tags = {}
        for name in store.folders(""):
            entry = store.look(f"{name}/{RECORD_NAME}")
            if entry is None:
                continue
            path = sets / name / RECORD_NAME
            if known.get(name) != entry.tag or not path.exists():
                store.fetch(entry.key, path)
                os.utime(path, (entry.modified, entry.modified))  # it tells which set is newest
            tags[name] = entry.tag
        for path in sets.glob(f"*/{RECORD_NAME}"):
            if path.parent.name not in tags:
                path.unlink()
        write_json(sets / _TAGS, tags)


def record(plan: ShardPlan) -> None:
    """Write the record of the set that a plan has made, with the images that it added."""
    entries = sorted(entry for part in plan.parts.values() for entry in part)
    lines = "".join(f"{json.dumps([*file[:3], label])}\n" for file, label, _ in entries).encode()
    head = _Head(
        lineage=plan.lineage,
        before=plan.before[-1].fingerprint if plan.before else None,
        classes=plan.classes,
        sha256=hashlib.sha256(lines).hexdigest(),
    )
    write_aside(plan.directory / RECORD_NAME, head.model_dump_json().encode() + b"\n" + lines)


def link(shard: Path, directory: Path) -> None:
    """Let a shard of an earlier set be found in the folder of a later one. The copy of a bucket has
    no links: what is missing there is fetched."""
    if origin_of(directory) is not None:
        return
    with suppress(FileExistsError):
        (directory / shard.name).symlink_to(os.path.relpath(shard, directory))


def _heads(sets: Path, lineage: str) -> dict[str, _Head]:
    """The heads of this lineage's records by the names of their sets, newest first."""
    times, heads = {}, dict[str, _Head]()
    for path in sets.glob(f"*/{RECORD_NAME}"):
        if (head := _head(path)) is not None and head.lineage == lineage:
            times[path.parent.name], heads[path.parent.name] = path.stat().st_mtime_ns, head

    def age(name: str) -> tuple[int, int, str]:
        """A bucket's times may be whole seconds; of two sets, one may have grown from the other."""
        return times[name], len(_chain(name, heads)), name

    return {name: heads[name] for name in sorted(heads, key=age, reverse=True)}


def _head(path: Path) -> _Head | None:
    """The head of a record; None if it is missing or damaged."""
    try:
        with path.open("rb") as file:
            return _Head.model_validate_json(file.readline())
    except (FileNotFoundError, ValidationError):
        return None


def _chain(newest: str, heads: Mapping[str, _Head]) -> list[str]:
    """The sets that led to this one, oldest first, and itself. If the folder of one of them is
    gone, the chain begins with its name."""
    chain: list[str] = []
    name: str | None = newest
    while name is not None and name not in chain:
        chain.append(name)
        name = heads[name].before if name in heads else None
    return chain[::-1]


_Images = dict[str, tuple[int, int, int]]
"""The size, CRC-32 and label of images by path."""


def _images(directory: Path, head: _Head) -> _Images:
    """The images that a set added, sorted by path; none if its record is damaged."""
    _, _, lines = (directory / RECORD_NAME).read_bytes().partition(b"\n")
    if hashlib.sha256(lines).hexdigest() != head.sha256:
        return {}
    entries = map(json.loads, lines.splitlines())
    return {path: (size, crc, label) for path, size, crc, label in entries}


def _fault(
    chain: Sequence[str],
    heads: Mapping[str, _Head],
    added: Mapping[str, _Images],
    now: _Images,
    classes: tuple[str, ...],
) -> str:
    """Why a set with the images `now` cannot grow from the last one of `chain`; empty if it can."""
    if lost := [name for name in chain if not added.get(name)]:
        return f"the folder or the {RECORD_NAME} of the earlier set {lost[0]} is gone or damaged"
    other = [path for name in chain for path, is_ in added[name].items() if now.get(path) != is_]
    if heads[chain[-1]].classes != classes:
        return "the classes are not those it had, and a label is the place of a class among all"
    if other:
        more = f" and {len(other) - 1} more of its images are" if len(other) > 1 else " is"
        return f"{other[0]}{more} gone or changed"
    return ""
