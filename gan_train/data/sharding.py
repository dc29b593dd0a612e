"""From pictures to shards: a plan, work that any number of processes share, and the index.

The plan alone decides which picture stands where, and a shard depends on the plan alone, so any
mapper may call `write_shard` in any order: a loop, a process pool, tasks on a cluster.

    plan = plan_shards(config, None, workspace)
    receipts = map(partial(write_shard, plan), range(plan.shards))
    index = finish_shards(plan, list(receipts))

A shard is written aside and renamed, its receipt after it. A receipt whose tar verifies is taken
as it is, so a killed run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError
from webdataset.writer import TarWriter

from gan_train.config import DataConfig
from gan_train.data.images import BadImage, Transform, load_image
from gan_train.data.index import (
    INDEX_NAME,
    DamagedShard,
    Index,
    Part,
    ShardInfo,
    content_hash,
    sample_key,
    shard_name,
)
from gan_train.data.selection import FORMAT, BadFile, arrange, choose
from gan_train.data.sources import (
    Source,
    SourceFile,
    UnreadableFile,
    list_source,
    open_source,
    trusted_since,
)
from gan_train.errors import UserError
from gan_train.files.atomic import aside, remove_leftovers, write_aside
from gan_train.files.digests import VerifiedFiles

MANIFEST_NAME, QUARANTINE_NAME = "manifest.jsonl", "quarantine.json"
_OWNER = "gan-train"
_PROBES = 8
_PIXELS = {"resolution", "colour", "resize", "crop", "background", "classes", "only_classes"}

log = logging.getLogger(__name__)


class PlannedImage(NamedTuple):
    """A file to store and its label; 0 when the data has no labels."""

    file: SourceFile
    label: int
    second: bool = False  # lies in the second source


@dataclass(frozen=True)
class ShardPlan:
    """What goes where. Made by `plan_shards`; pickles small, and nothing in it is open.

    `parts` are the images of each part, in their final order, cut into shards of `shard_images`.
    `matched` parts have their partners at the same places of another one. `rejected` files are no
    images by their name or place. `done` are the shards that have a receipt (not yet verified).
    `memory` is a folder that remembers which shards were verified, from the time `since` on, in
    seconds since 1970; with `verify` that is the time of the plan.
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

    @property
    def images(self) -> int:
        """Files that are stored unless they turn out to be bad."""
        return sum(map(len, self.parts.values()))

    @property
    def shards(self) -> int:
        """Number of calls of `write_shard`: 0 to shards-1."""
        return len(self._places())

    def _places(self) -> list[tuple[Part, int]]:
        """The part of every shard, and where in it the shard begins."""
        return [
            (part, begin)
            for part, images in self.parts.items()
            for begin in range(0, len(images), self.shard_images)
        ]

    def part_of(self, number: int) -> Part:
        """The part that the shard belongs to."""
        return self._places()[number][0]

    def entries_of(self, number: int) -> tuple[PlannedImage, ...]:
        """The images of that shard."""
        part, begin = self._places()[number]
        return self.parts[part][begin : begin + self.shard_images]


class ShardReceipt(BaseModel):
    """What became of a shard's files: `info` is None when all were bad; `paths` are those of the
    stored samples, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    fingerprint: str
    number: int
    info: ShardInfo | None
    paths: tuple[str, ...]
    bad: tuple[BadFile, ...]


def plan_shards(
    config: DataConfig, directory: Path | None, workspace: Path, *, verify: bool = False
) -> ShardPlan:
    """List the source and decide which image stands where. Writes no shard, but in
    `workspace/sources` what was read of a folder or tar, and a compressed tar, unpacked.

    What was read in the last `verify_days` and has not changed is not read again, neither here nor
    in what follows from the plan; with `verify` everything is.

    The shards go to `directory`, or to `workspace/shards/<fingerprint>`. With `classes: folder`
    the class of an image is the name of its folder, and an image outside of the class folders is
    rejected. Raises UserError for a source that is missing, unsafe or holds no such images.
    """
    origins = [(config.source, config.only_classes)]
    if config.second is not None:
        origins.append((config.second.source or config.source, config.second.only_classes))
    since = time.time() if verify else trusted_since(config.verify_days)
    lists = {place: list_source(Path(place), workspace, since) for place, _ in origins}
    sources, listed = zip(*(lists[place] for place, _ in origins), strict=True)
    chosen, rejected = [], list[BadFile]()
    for place, only_classes in origins:
        images, bad = choose(lists[place][1], place, config.classes, only_classes)
        chosen.append(images)
        rejected += [file for file in bad if file not in rejected]
    classes = tuple(sorted({name for _, name in chosen[0] if name is not None}))
    labels = {name: label for label, name in enumerate(classes)}
    parts: dict[Part, tuple[PlannedImage, ...]] = {
        part: tuple(
            PlannedImage(file, labels.get(name or "", 0), part.startswith("B"))
            for file, name in images
        )
        for part, images in arrange(config, chosen[0], chosen[1] if config.second else None).items()
    }

    transform = Transform.of(config)
    identity = config.model_dump(mode="json", include=_PIXELS)
    if len(sources) > 1 or config.held_out:
        identity |= config.model_dump(
            mode="json", include={"held_out": True, "second": {"only_classes", "pairs"}}
        )
    recipe = [FORMAT, identity, config.shard_images, config.max_pixels]
    fingerprint = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
    for files in listed:
        for file in files:  # by content, not by place: a zip and its tar give the same shards
            fingerprint.update(json.dumps([file.path, file.size, file.crc]).encode())
    name = fingerprint.hexdigest()[:16]
    if directory is None:
        directory = workspace / "shards" / name
    plan = ShardPlan(
        sources=sources,
        directory=directory.resolve(),
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
    )
    done = (n for n in range(plan.shards) if _receipt_path(plan.directory, n).exists())
    return replace(plan, done=tuple(done))


def _matched(config: DataConfig, parts: Iterable[Part]) -> tuple[Part, ...]:
    """The parts whose images have partners at the same places."""
    pairs = config.second.pairs if config.second is not None else "none"
    return tuple(
        part
        for part in parts
        if pairs == "training" or (pairs == "names" and part.endswith("held_out"))
    )


def expected_bytes(plan: ShardPlan) -> int:
    """Size of all tars, from that of a few images, which are read (they are in random order)."""
    total = 0
    for entries in plan.parts.values():
        sizes = []
        for entry in entries[:_PROBES]:
            with suppress(BadImage, UnreadableFile):
                source = open_source(plan.sources[entry.second])
                sizes.append(_in_tar(len(_stored_image(source, entry.file, plan.transform)[0])))
        each = sum(sizes) / max(len(sizes), 1) + bool(plan.classes) * _in_tar(1)
        total += round(each * len(entries))
    return total


def write_shard(plan: ShardPlan, number: int) -> ShardReceipt:
    """Write the tar with that number and its receipt; a finished one is verified and kept.

    Safe to call from many processes, and again after a kill. Raises UserError when the source
    changed since it was planned.
    """
    if (receipt := _valid_receipt(plan, number)) is not None:
        return receipt
    paths: list[str] = []
    bad: list[BadFile] = []
    offsets: list[int] = []
    end = 0
    tar = plan.directory / shard_name(number)
    sources = [open_source(path) for path in plan.sources]
    with aside(tar) as file:
        writer = TarWriter(file, user=_OWNER, group=_OWNER, mtime=0, encoder=False)
        for entry in plan.entries_of(number):
            try:
                image, extension = _stored_image(sources[entry.second], entry.file, plan.transform)
            except (BadImage, UnreadableFile) as error:
                bad.append(BadFile(entry.file.path, str(error)))
                continue
            members: dict[str, str | bytes] = {extension: image}
            if plan.classes:
                members["cls"] = str(entry.label).encode()
            writer.write({"__key__": sample_key(number, len(paths)), **members})
            paths.append(entry.file.path)
            offsets.append(end)
            end += sum(_in_tar(len(data)) for data in members.values())
        writer.close()
    if paths:
        known = _verified(plan, number)
        info = ShardInfo(
            name=tar.name,
            samples=len(paths),
            bytes=tar.stat().st_size,
            sha256=known.sha256(tar, just_written=True),
            offsets=tuple(offsets),
            part=plan.part_of(number),
        )
        known.save()
    else:  # all were bad
        tar.unlink()
        info = None
    receipt = ShardReceipt(
        fingerprint=plan.fingerprint, number=number, info=info, paths=tuple(paths), bad=tuple(bad)
    )
    write_aside(_receipt_path(plan.directory, number), receipt.model_dump_json().encode() + b"\n")
    return receipt


def _stored_image(source: Source, file: SourceFile, transform: Transform) -> tuple[bytes, str]:
    if file.size > transform.max_bytes:
        raise BadImage(f"{file.size} bytes, too large to be a picture")
    return load_image(source.read(file), transform)


def _in_tar(size: int) -> int:
    """Bytes that a member takes: a header, and the data in blocks of 512."""
    return 512 + -(-size // 512) * 512


def finish_shards(plan: ShardPlan, receipts: Iterable[ShardReceipt]) -> Index:
    """Write the index, the manifest (key to source path) and the quarantine report.

    Raises UserError, after writing the report, when more than `max_bad_fraction` of the files
    are bad, or all of them.
    """
    receipts = sorted(receipts, key=lambda receipt: receipt.number)
    assert [receipt.number for receipt in receipts] == list(range(plan.shards))
    bad = sorted([*plan.rejected, *(file for receipt in receipts for file in receipt.bad)])
    samples = sum(len(receipt.paths) for receipt in receipts)
    report = {
        "quarantined": len(bad),
        "files": len(bad) + samples,
        "reasons": dict(Counter(file.reason for file in bad).most_common()),
        "quarantine": [file._asdict() for file in bad],
    }
    report_path = plan.directory / QUARANTINE_NAME
    write_aside(report_path, json.dumps(report, indent=1).encode() + b"\n")
    _check_quarantine(plan, len(bad), samples)
    for receipt in receipts:
        if receipt.bad and plan.part_of(receipt.number) in plan.matched:
            path, reason = receipt.bad[0]
            raise UserError(f"{path} ({reason}) has a partner: mend it, or remove both of the pair")

    manifest = [
        json.dumps({"key": sample_key(receipt.number, place), "path": path}) + "\n"
        for receipt in receipts
        for place, path in enumerate(receipt.paths)
    ]
    write_aside(plan.directory / MANIFEST_NAME, "".join(manifest).encode())
    shards = tuple(receipt.info for receipt in receipts if receipt.info is not None)
    label_of = {entry.file.path: entry.label for part in plan.parts.values() for entry in part}
    labels = Counter(label_of[path] for receipt in receipts for path in receipt.paths)
    index = Index(
        content_hash=content_hash(shards, plan.identity),
        samples=samples,
        resolution=plan.transform.resolution,
        channels=1 if plan.transform.mode == "L" else 3,
        classes=plan.classes,
        class_counts=tuple(labels[label] for label in range(len(plan.classes))),
        transform=plan.identity,
        quarantined=len(bad),
        shards=shards,
    )
    index.save(plan.directory)
    remove_leftovers(plan.directory)
    return index


def verified_index(plan: ShardPlan) -> Index | None:
    """The index of shards that are finished, with every hash verified as far as the plan demands;
    None when there is work left, be it that a shard was damaged since (which is logged).

    Raises UserError when more files were bad than the configuration allows by now.
    """
    if not (plan.directory / INDEX_NAME).exists():
        return None
    try:
        index = Index.load(plan.directory)
    except UserError as error:
        log.warning("shards are checked and indexed anew: %s", error)
        return None
    receipts = [_valid_receipt(plan, number) for number in range(plan.shards)]
    if index.shards != tuple(done.info for done in receipts if done and done.info):
        return None
    _check_quarantine(plan, index.quarantined, index.samples)
    return index


def shard(
    config: DataConfig,
    workspace: Path,
    map: Callable[..., Iterable[ShardReceipt]] = map,
    progress: Callable[[ShardReceipt], None] | None = None,
    *,
    verify: bool = False,
) -> Path:
    """Plan, write and finish; returns the folder of the shards. Up-to-date ones are verified (see
    `plan_shards`) and kept. `map` may be that of a process pool; `progress` hears of every shard
    that is done."""
    plan = plan_shards(config, None, workspace, verify=verify)
    if verified_index(plan) is None:
        receipts = []
        for receipt in map(partial(write_shard, plan), range(plan.shards)):
            receipts.append(receipt)
            if progress is not None:
                progress(receipt)
        finish_shards(plan, receipts)
    return plan.directory


def _receipt_path(directory: Path, number: int) -> Path:
    return (directory / shard_name(number)).with_suffix(".json")


def _verified(plan: ShardPlan, number: int) -> VerifiedFiles:
    """What is remembered of one shard: a file for each, for many processes verify shards."""
    return VerifiedFiles(plan.memory / f"{shard_name(number)}.jsonl", plan.since)


def _valid_receipt(plan: ShardPlan, number: int) -> ShardReceipt | None:
    """The receipt of a finished shard, if it is of this plan and its tar verifies."""
    path = _receipt_path(plan.directory, number)
    try:
        receipt = ShardReceipt.model_validate_json(path.read_bytes())
        if receipt.info is not None:
            known = _verified(plan, number)
            receipt.info.verify(plan.directory, known)
            known.save()
    except FileNotFoundError:
        return None
    except (ValidationError, DamagedShard) as error:
        log.warning("shard %d is written anew: %s", number, error)
        return None
    same = (receipt.fingerprint, receipt.number) == (plan.fingerprint, number)
    return receipt if same else None


def _check_quarantine(plan: ShardPlan, bad: int, good: int) -> None:
    share = bad / (bad + good)
    if good and share <= plan.max_bad_fraction:
        return
    raise UserError(
        f"{bad} of {bad + good} files are no usable images ({share:.1%}, data.max_bad_fraction "
        f"allows {plan.max_bad_fraction:.1%}); {plan.directory / QUARANTINE_NAME} lists them with "
        "the reasons. Remove or mend them, or raise data.max_bad_fraction"
    )
