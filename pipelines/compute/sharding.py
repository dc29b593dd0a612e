"""Spreads sharding over Ray tasks, and keeps the plan of the data that a command has made.

The plan alone decides what a shard holds (see `gan_train/data/sharding.py`), so the bytes are the
same on any number of workers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.planning import ShardPlan, plan_shards
from gan_train.data.sharding import ShardReceipt, finish_shards, verified_index, write_shard
from gan_train.errors import UserError
from pipelines.compute.cluster import connected


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
    return plan_shards(config.data, None, config.workspace, verify=verify)


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
    index = verified_index(plan)
    if index is not None:
        return Sharded(plan.directory, index, skipped=True)
    with connected(config.cluster):
        receipts = _spread(plan, on_progress)
    return Sharded(plan.directory, finish_shards(plan, receipts), skipped=False)


def finished(config: Config) -> Path:
    """The folder of this configuration's data set, which `shard` has verified.

    Raises UserError when the images have not been sharded yet.
    """
    directory = plan_of(config).directory
    Index.load(directory)
    return directory


def _spread(plan: ShardPlan, on_progress: Callable[[float], None]) -> list[ShardReceipt]:
    """Write every shard in a Ray task of its own. A task whose process dies is tried again."""
    import ray

    task = ray.remote(num_cpus=1, max_retries=3)(write_shard)
    waiting = [task.remote(one) for one in plan.tasks()]
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
