"""Locks in an object store, for processes on several machines.

A lease is an object that names its owner and the time at which it expires. It is created only
where there is none, replaced only where it has not changed, and renewed while it is held; so of
several processes that want it, one has it. A process that dies renews no longer, and its lease is
free when it expires. Clocks of the machines must agree to some seconds.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gan_train.files.store import Entry, Store, StoreError

LIFE_S = 60.0
"""The seconds after which a lease that nobody renews is free."""
POLL_S = 1.0

log = logging.getLogger(__name__)


class Held(Exception):
    """Somebody else holds the lease. The text says who."""


@contextmanager
def leased(store: Store, key: str, *, wait: bool, life_s: float = LIFE_S) -> Iterator[None]:
    """Hold the lease at `key` until the block ends. With `wait`, wait for it; otherwise raise
    `Held` at once when somebody else holds it."""
    lease = _Lease(store, key, life_s)
    while (holder := lease.take()) is not None:
        if not wait:
            raise Held(holder)
        time.sleep(POLL_S)
    done = threading.Event()
    renewing = threading.Thread(target=lease.renew_until, args=(done,), daemon=True, name=key)
    renewing.start()
    try:
        yield
    finally:
        done.set()
        renewing.join()
        lease.release()


def holder_of(store: Store, key: str) -> str | None:
    """Who holds the lease at `key`, in words; None if it is free."""
    try:
        record = json.loads(store.read(key))
    except FileNotFoundError:
        return None
    holder: str = record["owner"]
    return holder if record["expires"] > time.time() else None


class _Lease:
    def __init__(self, store: Store, key: str, life_s: float) -> None:
        self._store, self._key, self._life_s = store, key, life_s
        self._owner = f"process {os.getpid()} on {socket.gethostname()} ({os.urandom(4).hex()})"

    def _record(self, life_s: float | None = None) -> bytes:
        expires = time.time() + (self._life_s if life_s is None else life_s)
        return json.dumps({"owner": self._owner, "expires": expires}).encode()

    def take(self) -> str | None:
        """Try to get the lease; returns None, or who holds it."""
        if self._store.create(self._key, self._record()):
            return None
        entry = self._store.look(self._key)
        holder = holder_of(self._store, self._key)
        if holder == self._owner:  # the answer to `create` was lost, and it was tried again
            return None
        if holder is not None:
            return holder
        if entry is not None and self._store.replace(self._key, self._record(), entry.tag):
            return None
        return "another process, which was faster"

    def _own(self) -> Entry | None:
        entry = self._store.look(self._key)
        if entry is None:
            return None
        try:
            record = json.loads(self._store.read(self._key))
        except FileNotFoundError:
            return None
        return entry if record["owner"] == self._owner else None

    def renew_until(self, done: threading.Event) -> None:
        """Renew the lease three times in its life. A store that does not answer is asked again."""
        while not done.wait(self._life_s / 3):
            try:
                entry = self._own()
                if entry is None or not self._store.replace(self._key, self._record(), entry.tag):
                    log.error("the lease %s/%s was lost to another", self._store.url, self._key)
                    return
            except StoreError as error:
                log.warning("the lease could not be renewed: %s", error)

    def release(self) -> None:
        """Free the lease, if it is still this one's."""
        entry = self._own()
        if entry is not None:
            self._store.replace(self._key, self._record(life_s=0), entry.tag)
