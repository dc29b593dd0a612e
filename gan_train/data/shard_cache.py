"""Brings shards from a store to this machine as they are needed, and forgets them again.

A folder of shards that is attached to a store (`files/store.py`) is a cache: all processes of the
machine share it. Whoever needs a shard that is not there fetches it; its SHA-256 is compared with
the index, once, on arrival. A copy that is damaged later is noticed when it is read, discarded, and
fetched again. When the folder's shards take more than a limit, those that arrived
first go first: lanes move on at one pace, so these are the ones that have been read.

The shards that a set has of earlier ones (`growth.py`) lie in the earlier sets' folders. The list
LINKS tells in which. What this machine has of them is not fetched again.

Only what is read is fetched, so a machine holds the shards of its own workers' lanes, and training
begins with the first of them.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from gan_train.data.index import INDEX_NAME, DamagedShard, Index, ShardInfo
from gan_train.files.atomic import remove_leftovers, write_aside
from gan_train.files.digests import sha256_of
from gan_train.files.locks import locked
from gan_train.files.store import Store, attach, origin_of

LIMIT = "cache-limit"
LINKS = "links.json"
"""The list of a grown set's shards that lie in the folders of earlier sets, with these folders."""
_TRIES = 2
_THREADS = 4
_LINKS = TypeAdapter(dict[str, Annotated[str, Field(pattern="^[0-9a-f]{16}$")]])

log = logging.getLogger(__name__)


def open_folder(folder: Path, store: Store, most_gb: float) -> Path:
    """Make `folder` a cache of the data set in `store`, with at most so many GB of shards; returns
    it, with the index in it if the data set is finished."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        attach(folder, store)
        remove_leftovers(folder)
        write_aside(folder / LIMIT, str(round(most_gb * 1e9)).encode())
        if not (folder / INDEX_NAME).exists() and store.look(INDEX_NAME) is not None:
            with suppress(FileNotFoundError):  # a set that has not grown
                store.fetch(LINKS, folder / LINKS)
            store.fetch(INDEX_NAME, folder / INDEX_NAME)
    return folder


def fetch(folder: Path, info: ShardInfo) -> bool:
    """Bring a shard into its folder, unless it is there; returns False if the folder is no cache.

    Raises DamagedShard when the store has none, or has other bytes than the index says.
    """
    store = origin_of(folder)
    if store is None:
        return False
    path = folder / info.name
    with locked(folder / f".{info.name}.lock"):
        if path.exists():
            return True
        earlier = _links(folder).get(info.name)
        if earlier is not None:
            store = store.beside(earlier)
            if _linked(folder.parent / earlier / info.name, path, info):
                return True
        for attempt in range(_TRIES):
            try:
                digest = store.fetch(info.name, path)
            except FileNotFoundError as error:
                raise DamagedShard(f"{store.url}/{info.name} is missing") from error
            if digest == info.sha256:
                break
            path.unlink()
            log.warning("%s/%s arrived damaged (try %d)", store.url, info.name, attempt + 1)
        else:
            raise DamagedShard(
                f"{store.url}/{info.name} has other bytes than the index says (with --verify, "
                "sharding sees it)"
            )
    _make_room(folder, keep=path)
    return True


def discard(folder: Path, info: ShardInfo) -> bool:
    """Delete the copy of a shard that turned out to be damaged, so that it is fetched again;
    returns False if the folder is no cache."""
    if origin_of(folder) is None:
        return False
    log.warning("%s was damaged after it arrived, and is fetched again", folder / info.name)
    with locked(folder / f".{info.name}.lock"):
        (folder / info.name).unlink(missing_ok=True)
    return True


def _links(folder: Path) -> dict[str, str]:
    """The earlier sets in which shards of this one lie, by the shards' names."""
    path = folder / LINKS
    try:
        return _LINKS.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise DamagedShard(f"{path} is damaged: {error.errors()[0]['msg']}") from None


def _linked(there: Path, here: Path, info: ShardInfo) -> bool:
    """Whether this machine has an earlier set's shard, which then lies in both folders."""
    with suppress(FileNotFoundError):  # also where it is forgotten meanwhile
        if sha256_of(there) == info.sha256:
            os.link(there, here)
            return True
    return False


def _make_room(folder: Path, keep: Path) -> None:
    """Delete the shards that arrived first, until the others keep to the limit. A process that
    still reads one has it open."""
    most = int((folder / LIMIT).read_text(encoding="utf-8"))
    with locked(folder / ".lock"):
        shards = [(path.stat(), path) for path in folder.glob("shard-*.tar")]
        total = sum(status.st_size for status, _ in shards)
        for status, path in sorted(shards, key=lambda each: each[0].st_mtime_ns):
            if total <= most:
                return
            if path != keep:
                path.unlink()
                total -= status.st_size


class Ahead:
    """Fetches shards before they are read, in threads. Does nothing for a folder that is no
    cache."""

    def __init__(self, index: Index, folder: Path) -> None:
        self._index, self._folder = index, folder
        self._threads: ThreadPoolExecutor | None = None
        if origin_of(folder) is not None:
            self._threads = ThreadPoolExecutor(_THREADS, "shards ahead")

    @property
    def fetches(self) -> bool:
        """Whether the folder is a cache."""
        return self._threads is not None

    def want(self, shard: int) -> None:
        """Begin to fetch the shard with this place in the index. If that fails, it is fetched
        again, and the error raised, when it is read."""
        info = self._index.shards[shard]
        if self._threads is not None and not (self._folder / info.name).exists():
            self._threads.submit(fetch, self._folder, info)
