"""Locks between processes and threads of one machine. A process that is killed frees its locks."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock on the file `path`, and hold it until the block ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Held(BlockingIOError):
    """Another process or thread holds the lock. The text says who, as far as that is known."""


@contextmanager
def locked_now(path: Path) -> Iterator[None]:
    """Hold the lock on the file `path` until the block ends, and write into it who does.

    Raises `Held` at once when another process or thread holds the lock.
    """
    with path.open("a+") as file:  # not "w", which would erase who holds it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Held(file.read(200).strip() or "another process") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def is_locked(path: Path) -> bool:
    """Whether another process or thread holds the lock on the file `path`.

    The file stays as it is. To find out, a free lock is held for an instant, in which nobody else
    can take it.
    """
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
