"""Turns image files into shards: plan, write the shards in any number of processes, then index.

The plan decides which image goes into which shard, and a shard depends on its task in the plan
alone. So `write_shard` may be called in any order, from a loop, a process pool, or tasks on a
cluster.

    plan = plan_shards(config, None, workspace)
    receipts = map(write_shard, plan.tasks())
    index = finish_shards(plan, list(receipts))

A shard is written under another name and renamed when it is whole; then its receipt is written the
same way. A shard whose receipt and tar are whole is not written again, so a killed process is
continued where it stopped. Digests of files are remembered (see `files/digests.py`), so that a file
is not read again only to verify it.
"""

from __future__ import annotations

import json
import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gan_train.config import DataConfig
from gan_train.data import growth
from gan_train.data.images import BadImage, Transform, load_image
from gan_train.data.index import (
    INDEX_NAME,
    DamagedShard,
    Index,
    IndexedAddition,
    ShardInfo,
    content_hash,
    sample_key,
    shard_name,
)
from gan_train.data.planning import ShardPlan, ShardTask, plan_shards, receipt_path
from gan_train.data.selection import BadFile
from gan_train.data.sources import (
    Source,
    SourceFile,
    UnreadableFile,
    open_source,
)
from gan_train.data.tars import in_tar, write_end, write_member
from gan_train.errors import UserError
from gan_train.files.atomic import aside, remove_leftovers, write_aside
from gan_train.files.digests import VerifiedFiles

MANIFEST_NAME, QUARANTINE_NAME = "manifest.jsonl", "quarantine.json"
PROBES = 8  # images of each part that `expected_bytes` reads

log = logging.getLogger(__name__)


class ShardReceipt(BaseModel):
    """The record of one written shard: `paths` has the source path of each stored sample, in order;
    `bad` has the files that were refused; `info` is None when all files were bad."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    fingerprint: str
    number: int
    info: ShardInfo | None
    paths: tuple[str, ...]
    bad: tuple[BadFile, ...]


def expected_bytes(plan: ShardPlan) -> int:
    """The expected size in bytes of the shards that the plan adds to those of earlier sets. The
    first images of each part are read to estimate it, which are random ones."""
    total = 0
    for entries in plan.parts.values():
        sizes = []
        for entry in entries[:PROBES]:
            with suppress(BadImage, UnreadableFile):
                source = open_source(plan.sources[entry.second])
                sizes.append(in_tar(len(_stored_image(source, entry.file, plan.transform)[0])))
        each = sum(sizes) / max(len(sizes), 1) + bool(plan.classes) * in_tar(1)
        total += round(each * len(entries))
    return total


def write_shard(task: ShardTask) -> ShardReceipt:
    """Write a shard and its receipt, unless both exist already and are whole.

    Many processes may call this at once, and call it again after one was killed. Raises UserError
    when a file of the source changed after the plan was made.
    """
    receipt = _valid_receipt(task)
    if receipt is not None and (receipt := _with_checksums(task, receipt)) is not None:
        return receipt
    paths: list[str] = []
    bad: list[BadFile] = []
    offsets, checksums = array("Q"), array("I")
    tar = task.directory / shard_name(task.number)
    sources = [open_source(path) for path in task.sources]
    with aside(tar) as file:
        for entry in task.entries:
            try:
                image, extension = _stored_image(sources[entry.second], entry.file, task.transform)
            except (BadImage, UnreadableFile) as error:
                bad.append(BadFile(entry.file.path, str(error)))
                continue
            key = sample_key(task.number, len(paths))
            paths.append(entry.file.path)
            offsets.append(file.tell())
            crc = 0
            if task.labelled:
                crc = write_member(file, f"{key}.cls", str(entry.label).encode())
            checksums.append(write_member(file, f"{key}.{extension}", image, crc))
        end = write_end(file, checksums.pop() if checksums else 0)
        checksums.append(end)
    if paths:
        known = _verified(task)
        info = ShardInfo(
            name=tar.name,
            samples=len(paths),
            bytes=tar.stat().st_size,
            sha256=known.sha256(tar),
            offsets=offsets,
            checksums=checksums,
            part=task.part,
        )
        known.save()
    else:  # all files were bad
        tar.unlink()
        info = None
    receipt = ShardReceipt(
        fingerprint=task.fingerprint,
        number=task.number,
        info=info,
        paths=tuple(paths),
        bad=tuple(bad),
    )
    _save(task, receipt)
    return receipt


def _save(task: ShardTask, receipt: ShardReceipt) -> None:
    path = receipt_path(task.directory, task.number)
    write_aside(path, receipt.model_dump_json().encode() + b"\n")


def _with_checksums(task: ShardTask, receipt: ShardReceipt) -> ShardReceipt | None:
    """The receipt of a finished shard. If it was written before there were checksums, they are
    added to it; None if the shard turns out to be damaged."""
    if receipt.info is None or receipt.info.checksums:
        return receipt
    try:
        info = receipt.info.with_checksums(task.directory)
    except DamagedShard as error:
        log.warning("shard %d is written anew: %s", task.number, error)
        return None
    receipt = receipt.model_copy(update={"info": info})
    _save(task, receipt)
    return receipt


def _stored_image(source: Source, file: SourceFile, transform: Transform) -> tuple[bytes, str]:
    if file.size > transform.max_bytes:
        raise BadImage(f"{file.size} bytes, too large to be an image")
    return load_image(source.read(file), transform)


def finish_shards(plan: ShardPlan, receipts: Iterable[ShardReceipt]) -> Index:
    """Write the index, the manifest (the source path of every key) and the quarantine report.

    Raises UserError, after the report is written, when more than `max_bad_fraction` of the files
    are bad, when all are, or when one of a matched pair is.
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
    tasks = list(plan.tasks())
    for receipt, task in zip(receipts, tasks, strict=True):
        if receipt.bad and task.part in plan.matched:
            path, reason = receipt.bad[0]
            raise UserError(f"{path} ({reason}) has a partner: mend it, or remove both of the pair")

    manifest = [
        f'{{"key": "{sample_key(receipt.number, place)}", "path": {json.dumps(path)}}}\n'
        for receipt in receipts
        for place, path in enumerate(receipt.paths)
    ]
    write_aside(plan.directory / MANIFEST_NAME, "".join(manifest).encode())
    shards = tuple(receipt.info for receipt in receipts if receipt.info is not None)
    label_of = {entry.file.path: entry.label for task in tasks for entry in task.entries}
    labels = Counter(label_of[path] for receipt in receipts for path in receipt.paths)
    of_set: dict[Path, list[ShardInfo]] = {}
    for info in shards:
        directory = tasks[info.number].directory
        of_set.setdefault(directory, []).append(info)
        if directory != plan.directory:
            growth.link(directory / info.name, plan.directory)
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
        additions=tuple(IndexedAddition.of(added, plan.identity) for added in of_set.values())
        if plan.before
        else (),
    )
    index.save(plan.directory)
    if plan.lineage:
        growth.record(plan)
    remove_leftovers(plan.directory)
    return index


def verified_index(plan: ShardPlan) -> Index | None:
    """The index of the finished shards, once each is verified (or was after `plan.since`). None
    when shards are missing or damaged, or have no checksums yet; damage is logged.

    Raises UserError when more files were bad than the plan's `max_bad_fraction` allows.
    """
    if not (plan.directory / INDEX_NAME).exists():
        return None
    try:
        index = Index.load(plan.directory)
    except UserError as error:
        log.warning("shards are checked and indexed anew: %s", error)
        return None
    if plan.lineage and not growth.is_recorded(plan.directory, plan.lineage):
        return None
    if not all(info.checksums for info in index.shards):
        return None
    receipts = [_valid_receipt(task) for task in plan.tasks()]
    if not all((plan.directory / info.name).exists() for info in index.shards):
        return None  # the link to an earlier set's shard is gone
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
    """Plan, write and finish the shards, and return their folder.

    Shards that exist already are verified (see `plan_shards`) and kept. `map` may be the `map` of a
    process pool; `progress` is called for every shard that is done. Raises UserError as
    `plan_shards`, `write_shard` and `finish_shards` do.
    """
    plan = plan_shards(config, None, workspace, verify=verify)
    if verified_index(plan) is None:
        receipts = []
        for receipt in map(write_shard, plan.tasks()):
            receipts.append(receipt)
            if progress is not None:
                progress(receipt)
        finish_shards(plan, receipts)
    return plan.directory


def _verified(task: ShardTask) -> VerifiedFiles:
    """The record of when one shard was verified. Each shard has a file of its own for it, because
    many processes verify shards at once."""
    memory = task.memory / f"{shard_name(task.number)}.jsonl"
    return VerifiedFiles(memory, task.since, ours=True)


def _valid_receipt(task: ShardTask) -> ShardReceipt | None:
    """The receipt of a finished shard; None unless it belongs to this plan and its tar is whole."""
    path = receipt_path(task.directory, task.number)
    try:
        receipt = ShardReceipt.model_validate_json(path.read_bytes())
        if receipt.info is not None:
            known = _verified(task)
            receipt.info.verify(task.directory, known)
            known.save()
    except FileNotFoundError:
        return None
    except (ValidationError, DamagedShard) as error:
        log.warning("shard %d is written anew: %s", task.number, error)
        return None
    same = (receipt.fingerprint, receipt.number) == (task.fingerprint, task.number)
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
