"""Runs in a bucket: how a run's folder travels between the machines that train it and follow it.

With a workspace in a store, no folder is seen by two machines. Rank 0 of the workers writes the run
into a folder of its own, and an `Outbox` sends what is new while training goes on: a checkpoint's
manifest behind its files, and events behind all that they name. The process that follows the run
has an `Inbox`, which brings events and what they name into its folder. The log travels in pieces
that are written once; the name of a piece is the place of its first byte in the log:

    <workspace>/train/<run>/config.yaml
                            shards                          where the shards lie
                            events/000000000000000.jsonl    pieces of the log
                            checkpoints/000012000/...
                            samples/..., workers.log, mlflow.json
                            STOP, REFUSED                   as in the folder of a run
                            lease                           who may write the run (files/lease.py)

Nothing that was sent is needed on the machine that sent it: a run can be resumed anywhere. What was
not sent when a machine dies is lost, and is trained again.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from gan_train.config import Config
from gan_train.files.atomic import write_aside
from gan_train.files.lease import leased
from gan_train.files.locks import locked
from gan_train.files.store import Store, StoreError, origin_of
from gan_train.runs.checkpoint import FOLDER as CHECKPOINTS
from gan_train.runs.checkpoint import MANIFEST, PRUNED, SCORES, find_damage, newest_valid
from gan_train.runs.events import LOG_NAME, end_of_lines, parse
from gan_train.runs.ledger import LEDGER

PIECES = "events"
LEASE = "lease"
SHARDS = "shards"
STOP = "STOP"
"""A file of this name in the run's folder asks the training to save a checkpoint and end."""
RESIZE = "RESIZE"
"""A file of this name in the run's folder asks the workers to save a checkpoint and end, so that
another number of workers goes on (`pipelines/compute/elastic.py`)."""
REFUSED = "REFUSED"
"""A file of this name in the run's folder holds the message of an error that a restart would only
repeat: a user's mistake, or numbers that are not finite."""
WORKER_LOG = "workers.log"
"""The file with the messages of the workers; in a store, of those on rank 0's machine."""
POLL_S = 1.0
_REQUESTS = (STOP, RESIZE)
_ONLY_HERE = {LOG_NAME, SHARDS, *_REQUESTS}
_NOT_BROUGHT = {LEASE, SHARDS, *_REQUESTS}
_FOLLOWERS = ("mlflow.json",)
"""Files that the follower writes, and the workers do not know."""

log = logging.getLogger(__name__)


class Superseded(RuntimeError):
    """Another process has written the run's log in the meantime."""


def _store_of(run_dir: Path) -> Store:
    store = origin_of(run_dir)
    assert store is not None, f"{run_dir} is attached to no store"
    return store


def _files(run_dir: Path) -> dict[str, tuple[int, int]]:
    """The files of a run that travel, by relative path, with their times and sizes; manifests
    last."""
    found = {}
    for folder, folders, names in os.walk(run_dir):
        folders[:] = [name for name in folders if not name.endswith(".part")]
        for name in names:
            path = Path(folder) / name
            relative = path.relative_to(run_dir).as_posix()
            if name.startswith(".") or name.endswith((".part", ".lock")) or relative in _ONLY_HERE:
                continue
            try:
                status = path.stat()
            except FileNotFoundError:  # thinned or renamed meanwhile
                continue
            found[relative] = (status.st_mtime_ns, status.st_size)
    return dict(sorted(found.items(), key=lambda each: (each[0].endswith(MANIFEST), each[0])))


class _Courier(ABC):
    """Makes passes between a folder and its store, from a thread, and a last one at the end of the
    block. A store that is away holds nothing up: a warning tells `meanwhile`."""

    def __init__(self, run_dir: Path, meanwhile: str) -> None:
        self._run_dir, self._store, self._meanwhile = run_dir, _store_of(run_dir), meanwhile
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name=type(self).__name__, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._last_pass()

    def _work(self) -> None:
        away = False
        while not self._ended.wait(POLL_S):
            try:
                self._pass()
                away = False
            except Superseded:
                return
            except StoreError as error:
                if not away:
                    log.warning("the store does not answer; %s: %s", self._meanwhile, error)
                away = True

    @abstractmethod
    def _pass(self) -> None:
        """Carry what there is to carry. Raises StoreError while the store is away."""

    @abstractmethod
    def _last_pass(self) -> None:
        """Carry what is left at the end."""


# ---- to the store --------------------------------------------------------------------------------


class Outbox(_Courier):
    """Sends what is new in the folder of a run to its store, from a thread; use it as a context
    manager. Leaving the block sends the rest.

    A store that is away holds nothing up: what is new waits in the folder. A file STOP or
    RESIZE in the store is copied to the folder.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir, "the run waits on this disk")
        self._sent = _files(run_dir)  # `bring` has just brought these
        self._offset = end_of_lines(run_dir / LOG_NAME)
        self._error: Superseded | None = None

    def _pass(self) -> None:
        try:
            self.send()
        except Superseded as error:
            self._error = error
            raise
        for name in _REQUESTS:
            if self._store.look(name) is not None:
                (self._run_dir / name).touch()

    def _last_pass(self) -> None:
        self.check()
        self.send()

    def check(self) -> None:
        """Raise `Superseded` if another process writes this run."""
        if self._error is not None:
            raise self._error

    def send(self) -> None:
        """Send what is new, and remove what is gone: once, now."""
        end = end_of_lines(self._run_dir / LOG_NAME)  # what is written later may name newer files
        files = _files(self._run_dir)
        for relative in sorted(self._sent.keys() - files.keys(), key=lambda r: MANIFEST not in r):
            self._store.delete(relative)
            del self._sent[relative]
        for relative, stamp in files.items():
            if self._sent.get(relative) != stamp:
                try:
                    self._store.send(self._run_dir / relative, relative)
                except FileNotFoundError:  # thinned or replaced meanwhile: the next pass sees it
                    continue
                self._sent[relative] = stamp
        self._send_events(end)

    def _send_events(self, end: int) -> None:
        if end == self._offset:
            return
        with (self._run_dir / LOG_NAME).open("rb") as file:
            file.seek(self._offset)
            piece = file.read(end - self._offset)
        key = f"{PIECES}/{self._offset:015d}.jsonl"
        if not self._store.create(key, piece) and self._store.read(key) != piece:
            raise Superseded(f"{self._store.url} is being trained by another process as well")
        self._offset = end


@contextmanager
def workspace_lock(config: Config, name: str) -> Iterator[None]:
    """Wait for a lock of the workspace, and hold it until the block ends. With a workspace in a
    bucket, the processes of all machines heed it."""
    if config.store is None:
        with locked(config.workspace / f"{name}.lock"):
            yield
    else:
        with leased(Store(config.store), f"locks/{name}", wait=True):
            yield


@contextmanager
def sending(run_dir: Path) -> Iterator[None]:
    """Send what the block has written into the folder of a run, if the run is in a store."""
    outbox = Outbox(run_dir) if origin_of(run_dir) is not None else None
    yield
    if outbox is not None:
        outbox.send()


# ---- from the store ------------------------------------------------------------------------------


def bring(run_dir: Path) -> None:
    """Make the folder of a run what the store has: all files, the log, and all whole checkpoints.
    Checkpoints that the store does not have are removed.

    If the run is being trained, the ledger has every checkpoint that was brought before it."""
    store = _store_of(run_dir)
    with locked(run_dir / ".bring.lock"):
        _bring_checkpoints(run_dir, store)
        for entry in store.entries():
            folder, _, name = entry.key.rpartition("/")
            path = run_dir / entry.key
            if folder.startswith((PIECES, CHECKPOINTS)) or name in _NOT_BROUGHT:
                continue
            if not folder or not path.exists() or path.stat().st_size != entry.size:
                store.fetch(entry.key, path)
    bring_log(run_dir)


def bring_to_train(run_dir: Path) -> str:
    """Prepare the folder in which rank 0 trains: log, ledger and all whole checkpoints. What an
    earlier worker has not sent is removed. Returns the name of the checkpoint to go on from, which
    all other workers must take as well (`bring_one`); empty if there is none."""
    store = _store_of(run_dir)
    for name in (*_REQUESTS, REFUSED):
        (run_dir / name).unlink(missing_ok=True)
    (run_dir / LEDGER).unlink(missing_ok=True)
    if store.look(LEDGER) is not None:
        store.fetch(LEDGER, run_dir / LEDGER)
    _bring_checkpoints(run_dir, store)
    bring_log(run_dir)
    newest = newest_valid(run_dir)
    return newest.name if newest is not None else ""


def bring_one(run_dir: Path, name: str) -> None:
    """Prepare the folder in which workers other than rank 0 train: the checkpoint that rank 0 goes
    on from, and no other. The workers of one machine share the folder.

    The store may meanwhile have newer checkpoints, of a rank 0 that was about to end.
    """
    store, root = _store_of(run_dir), run_dir / CHECKPOINTS
    with locked(run_dir / ".bring.lock"):
        for path in root.glob("*"):
            if path.name != name:
                shutil.rmtree(path)
        if name:
            found = store.entries(f"{CHECKPOINTS}/{name}")
            files = {entry.key.rpartition("/")[2]: entry.size for entry in found}
            _bring_checkpoint(run_dir, store, name, files)


def bring_log(run_dir: Path) -> None:
    """Make the log of a run what the store has."""
    store = _store_of(run_dir)
    pieces = [store.read(entry.key) for entry in store.entries(PIECES)]
    write_aside(run_dir / LOG_NAME, b"".join(pieces))


def _bring_checkpoints(run_dir: Path, store: Store) -> None:
    """Make the checkpoints what the store has."""
    folders: dict[str, dict[str, int]] = {}
    for entry in store.entries(CHECKPOINTS):
        _, name, file = entry.key.split("/")
        folders.setdefault(name, {})[file] = entry.size
    for path in (run_dir / CHECKPOINTS).glob("*"):
        if path.name not in folders:
            shutil.rmtree(path)
    for name, files in folders.items():
        _bring_checkpoint(run_dir, store, name, files)


def _bring_checkpoint(run_dir: Path, store: Store, name: str, files: dict[str, int]) -> None:
    """Make the folder of a checkpoint what the store has. One that was not sent to its end is left
    out."""
    folder, key = run_dir / CHECKPOINTS / name, f"{CHECKPOINTS}/{name}"
    if not files.keys() & {MANIFEST, PRUNED}:
        return
    here = folder / MANIFEST
    if MANIFEST in files and here.exists():
        same = here.read_bytes() == store.read(f"{key}/{MANIFEST}") and not find_damage(folder)
        if not same:
            shutil.rmtree(folder)
    for path in folder.glob("*"):
        if path.name not in files:
            path.unlink()
    for file, size in sorted(files.items(), key=lambda each: each[0] == MANIFEST):
        path = folder / file
        if file == SCORES or not path.exists() or path.stat().st_size != size:
            store.fetch(f"{key}/{file}", path)


def send_folder(run_dir: Path, folder: Path) -> None:
    """Send the generator and its description, of any checkpoint's folder, to the run's store."""
    store = _store_of(run_dir)
    for path in folder.glob("generator.*"):
        store.send(path, f"{folder.name}/{path.name}")


def bring_folder(run_dir: Path, name: str) -> None:
    """Bring a folder of a run from its store. Several workers of one machine may call this."""
    store = _store_of(run_dir)
    with locked(run_dir / ".bring.lock"):
        for entry in store.entries(name):
            if not (run_dir / entry.key).exists():
                store.fetch(entry.key, run_dir / entry.key)


def remove(run_dir: Path) -> None:
    """Remove all that the store has of a run."""
    store = _store_of(run_dir)
    for entry in store.entries():
        store.delete(entry.key)


class Inbox(_Courier):
    """Brings events, and what they name, to the folder of a run, from a thread; use it as a context
    manager. Leaving the block brings all that is left, checkpoints included.

    A file STOP or RESIZE in the folder is copied to the store, and so are the files that the
    follower of a run writes.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(run_dir, "training goes on unseen")
        self._sent: dict[str, bytes] = {}
        self._log_size = 0

    def _last_pass(self) -> None:
        self._pass()
        bring(self._run_dir)

    def _pass(self) -> None:
        for name in _REQUESTS:
            if (self._run_dir / name).exists() and name not in self._sent:
                self._store.write(name, b"")
                self._sent[name] = b""
        for name in _FOLLOWERS:
            path = self._run_dir / name
            data = path.read_bytes() if path.exists() else b""
            if data and self._sent.get(name) != data:
                self._store.write(name, data)
                self._sent[name] = data
        worker_log = self._store.look(WORKER_LOG)
        if worker_log is not None and worker_log.size != self._log_size:
            self._store.fetch(WORKER_LOG, self._run_dir / WORKER_LOG)
            self._log_size = worker_log.size
        self._bring_events()

    def _bring_events(self) -> None:
        """Append the pieces of the log that are new, each once all is here that it names."""
        place = end_of_lines(self._run_dir / LOG_NAME)
        after = f"{PIECES}/{place - 1:015d}.jsonl" if place else ""
        for entry in self._store.entries(PIECES, after=after):
            piece = self._store.read(entry.key)
            for line in piece.splitlines():
                if (event := parse(line)) is not None:
                    self._bring_named(event)
            with (self._run_dir / LOG_NAME).open("ab") as file:
                file.write(piece)

    def _bring_named(self, event: dict[str, Any]) -> None:
        """Bring the picture or the checkpoint that an event names. It may be gone by now."""
        if "path" in event:
            named = event["path"]
            inside = [entry.key for entry in self._store.entries(named)]
            for key in inside or [named]:
                with suppress(FileNotFoundError):
                    self._store.fetch(key, self._run_dir / key)
