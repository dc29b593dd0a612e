"""Finds a finished data set among those of a workspace, by what it holds."""

from __future__ import annotations

import logging
from pathlib import Path

from gan_train.config import Config
from gan_train.data import shard_cache
from gan_train.data.index import INDEX_NAME, Index
from gan_train.errors import UserError
from gan_train.files.store import Store

_SETS = "shards"

log = logging.getLogger(__name__)


def finished_set(config: Config, content_hash: str) -> Path | None:
    """The folder of the data set with this content hash in the workspace of a configuration; None
    if it has none, or none whose index can be read. Of a bucket it is this machine's copy, which
    fetches shards when they are read.

    Raises StoreError where the bucket does not answer.
    """
    for directory in _sets(config):
        try:
            if Index.load(directory).content_hash == content_hash:
                return directory
        except UserError as error:
            log.warning("a data set is passed over: %s", error)
    return None


def _sets(config: Config) -> list[Path]:
    """The folders of the finished data sets of a workspace."""
    root = config.workspace / _SETS
    if config.store is None:
        return [path.parent for path in sorted(root.glob(f"*/{INDEX_NAME}"))]
    sets = Store(config.store) / _SETS
    return [
        shard_cache.open_folder(root / name, sets / name, config.data.node_cache_gb)
        for name in Store(config.store).folders(_SETS)
        if sets.look(f"{name}/{INDEX_NAME}") is not None
    ]
