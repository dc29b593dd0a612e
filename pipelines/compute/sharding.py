"""Spreads sharding over Ray tasks, and keeps the plan of the data that a command has made.

The plan alone decides what a shard holds (see `gan_train/data/sharding.py`), so the bytes are the
same on any number of workers.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory

from tqdm import tqdm

from gan_train.config import ClusterConfig, Config
from gan_train.data import growth, shard_cache
from gan_train.data.compressed import plain_source
from gan_train.data.index import INDEX_NAME, Index, shard_name
from gan_train.data.planning import ShardPlan, ShardTask, plan_shards, receipt_path
from gan_train.data.sharding import (
    MANIFEST_NAME,
    QUARANTINE_NAME,
    ShardReceipt,
    finish_shards,
    verified_index,
    write_shard,
)
from gan_train.data.sources import local_place
from gan_train.errors import UserError
from gan_train.files.atomic import write_aside
from gan_train.files.store import Store, is_url, local_copy
from pipelines.compute import room
from pipelines.compute.cluster import connected

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sharded:
    """A finished data set on disk. `skipped` tells that it was there before, undamaged."""

    directory: Path
    index: Index
    skipped: bool


_planned: ContextVar[tuple[Config, ShardPlan] | None] = ContextVar("planned", default=None)
"""The plan that `planned` has set, with the configuration that it was made for."""


@contextmanager
def planned(config: Config, plan: ShardPlan) -> Iterator[None]:
    """While this lasts, `shard` and `finished` take this plan for the data of this configuration,
    and do not look at the source again."""
    token = _planned.set((config, plan))
    try:
        yield
    finally:
        _planned.reset(token)


def plan_of(config: Config, *, verify: bool = False) -> ShardPlan:
    """The plan for this data that `planned` has set, or else a new one. With `verify`, a new plan
    reads all data again, and one that was made without `verify` is not used."""
    at_hand = _planned.get()
    if at_hand is not None:
        other, plan = at_hand
        same = (other.data, other.workspace) == (config.data, config.workspace)
        if same and (plan.verify or not verify):
            return plan
    return plan_shards(config.data, None, config.workspace, store=config.store, verify=verify)


def shard(
    config: Config,
    on_progress: Callable[[float], None] = lambda fraction: None,
    *,
    verify: bool = False,
) -> Sharded:
    """Shard the images of `config.data`. Undamaged shards are kept; damaged and missing ones are
    written again.

    Files that were verified in the last `data.verify_days` and have not changed are not read again
    unless `verify` is set. Raises UserError for a source that cannot be read or has too many bad
    files.
    """
    plan = plan_of(config, verify=verify)
    stored = StoredShards.of(config, plan.directory)
    index = stored.index(plan) if stored else verified_index(plan)
    if index is not None:
        return Sharded(plan.directory, index, skipped=True)
    with connected(config.cluster):
        receipts = _spread(plan, stored, on_progress)
    index = stored.finish(plan, receipts) if stored else finish_shards(plan, receipts)
    return Sharded(plan.directory, index, skipped=False)


def finished(config: Config) -> Path:
    """The folder of this configuration's data set, which `shard` has verified.

    Raises UserError when the images have not been sharded yet.
    """
    directory = plan_of(config).directory
    index_of(config, directory)
    return directory


def index_of(config: Config, directory: Path) -> Index:
    """The index of a finished data set of the workspace. Raises UserError when there is none."""
    stored = StoredShards.of(config, directory)
    if stored:
        stored.open()
    return Index.load(directory)


@dataclass(frozen=True)
class StoredShards:
    """A data set in a bucket: `url` is the workspace's, `folder` the data set's place in it, and
    `sources` are the places of its images as the configuration has them."""

    url: str
    folder: str
    most_gb: float
    sources: tuple[str, ...]

    @staticmethod
    def of(config: Config, directory: Path) -> StoredShards | None:
        """The data set that belongs to a folder of the workspace; None without a bucket."""
        if config.store is None:
            return None
        folder = directory.relative_to(config.workspace.resolve()).as_posix()
        second = config.data.second
        places = [config.data.source, *([second.source or config.data.source] if second else [])]
        return StoredShards(config.store, folder, config.data.node_cache_gb, tuple(places))

    @property
    def store(self) -> Store:
        """Its folder in the bucket."""
        return Store(self.url) / self.folder

    def open(self) -> Path:
        """This machine's folder for it, where shards are fetched when they are read."""
        folder = local_copy(self.url).resolve() / self.folder
        return shard_cache.open_folder(folder, self.store, self.most_gb)

    def index(self, plan: ShardPlan) -> Index | None:
        """The index of the finished data set, if all shards are in the bucket with the sizes that
        it names; their digests are verified where they arrive, and with `plan.verify` here, too.
        None otherwise: the damaged ones are then removed, so that `write` replaces them, and
        `finish` replaces the index."""
        if self.store.look(INDEX_NAME) is None:
            return None
        folder = self.open()
        try:
            index = Index.load(folder)
        except UserError as error:
            log.warning("shards are checked and indexed anew: %s", error)
            (folder / INDEX_NAME).unlink()
            return None
        if plan.lineage and not growth.is_recorded(plan.directory, plan.lineage):
            return None
        if {self._kept(shard_cache.LINKS), _read(folder / shard_cache.LINKS)} != {_links(plan)}:
            return None
        set_of = {shard_name(task.number): self._set_of(task).store for task in plan.tasks()}
        sizes = {
            (store.url, entry.key): entry.size
            for store in {store.url: store for store in set_of.values()}.values()
            for entry in store.entries()
        }
        damaged = [
            (store, shard.name)
            for shard in index.shards
            if sizes.get(((store := set_of[shard.name]).url, shard.name)) != shard.bytes
            or (plan.verify and _sha256(store, shard.name) != shard.sha256)
        ]
        for store, name in damaged:
            log.warning("%s/%s is missing or damaged, and is written anew", store.url, name)
            store.delete(name)
        return None if damaged else index

    def _set_of(self, task: ShardTask) -> StoredShards:
        """The set to which a task's shard belongs: this one, or one that it grew from."""
        return replace(self, folder=f"{PurePath(self.folder).parent}/{task.directory.name}")

    def _kept(self, name: str) -> bytes:
        """What the bucket has of a file; empty if it has none."""
        try:
            return self.store.read(name)
        except FileNotFoundError:
            return b""

    def write(self, task: ShardTask) -> ShardReceipt:
        """Write a shard, unless it is in the bucket, and send it there: first its tar, and then its
        receipt. This runs on any node."""
        name = receipt_path(task.directory, task.number).name
        own = self._set_of(task)
        folder, store = own.open(), own.store
        if store.look(name) is not None:
            receipt = ShardReceipt.model_validate_json(store.read(name))
            if receipt.info is None or store.look(receipt.info.name) is not None:
                return receipt
        sources = tuple(
            plain_source(local_place(place), local_copy(self.url)) if is_url(place) else path
            for place, path in zip(self.sources, task.sources, strict=True)
        )
        here = replace(task, directory=folder, memory=folder / "verified", sources=sources)
        receipt = write_shard(here)
        if receipt.info is not None:
            store.send(folder / receipt.info.name, receipt.info.name)
        store.send(folder / name, name)
        return receipt

    def finish(self, plan: ShardPlan, receipts: list[ShardReceipt]) -> Index:
        """Finish the shards as `finish_shards` does, and send what it has written, the index
        last."""
        folder = self.open()
        index = finish_shards(plan, receipts)
        sent = [QUARANTINE_NAME, MANIFEST_NAME]
        if plan.before:
            write_aside(folder / shard_cache.LINKS, _links(plan))
            sent.append(shard_cache.LINKS)
        if plan.lineage:
            sent.append(growth.RECORD_NAME)
        for name in (*sent, INDEX_NAME):
            self.store.send(folder / name, name)
        return index


def _links(plan: ShardPlan) -> bytes:
    """The earlier sets that a set's shards lie in, as the bucket keeps it; empty without any."""
    found = {
        shard_name(task.number): task.directory.name
        for task in plan.tasks()
        if task.directory != plan.directory
    }
    return json.dumps(found, sort_keys=True).encode() if found else b""


def _read(path: Path) -> bytes:
    """The content of a file; empty if it is missing."""
    return path.read_bytes() if path.exists() else b""


def _sha256(store: Store, name: str) -> str:
    with TemporaryDirectory() as folder:
        return store.fetch(name, Path(folder) / name)


def _write(stored: StoredShards | None, task: ShardTask) -> ShardReceipt:
    return stored.write(task) if stored else write_shard(task)


def _spread(
    plan: ShardPlan, stored: StoredShards | None, on_progress: Callable[[float], None]
) -> list[ShardReceipt]:
    """Write every shard in a Ray task of its own. A task whose process dies is tried again. Waits
    while others use all CPUs of the cluster."""
    import ray

    room.wait(ClusterConfig(), gpu=False, over=lambda: False)  # what one task needs
    task = ray.remote(num_cpus=1, max_retries=3)(_write)
    waiting = [task.remote(stored, one) for one in plan.tasks()]
    receipts: list[ShardReceipt] = []
    hidden = not sys.stderr.isatty()
    with tqdm(total=plan.shards, unit="shard", desc="sharding", disable=hidden) as bar:
        while waiting:
            ready, waiting = ray.wait(waiting)
            try:
                receipts += ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, UserError):
                    raise UserError(str(error.cause)) from None
                raise
            bar.update(len(ready))
            on_progress(len(receipts) / plan.shards)
    return receipts
