"""The claim of the process that trains a run (rank 0) on the run's folder: no two train it.

Whoever starts a training holds the run's lock (`run_folder.exclusive`), but workers may outlive it:
as a Ray job, or for some seconds on another machine. So rank 0 holds a claim while it trains.
Claims are numbered files in the folder `.claims`, and the highest number counts. A claim is only
ever made under a number that there was none of, which one process alone can do, in a folder that
several machines share, too. On its own machine a lock on the file tells whether its process lives,
and elsewhere the file's age: it is touched while the process lives, and clocks must agree to some
seconds. In a bucket, `shared.py` sees to it that one process alone writes a run.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gan_train.errors import UserError
from gan_train.files.locks import is_locked
from gan_train.runs.shared import Superseded

FOLDER = ".claims"
LIFE_S = 60.0
"""The seconds after which a claim that nobody touches is void on other machines."""
POLL_S = 0.5


class Claim:
    """A claim that is held. `check` it now and then."""

    def __init__(self, path: Path, owner: str) -> None:
        self._path, self._owner, self._lost = path, owner, False

    def check(self) -> None:
        """Raise `Superseded` if another process has claimed the run, because this one was taken for
        dead."""
        if self._lost:
            raise Superseded(f"{self._path.parents[1].name} is being trained by another process")

    def _renew_until(self, done: threading.Event) -> None:
        while not done.wait(LIFE_S / 3):
            try:
                self._lost = _newest(self._path.parent) != self._path
                os.utime(self._path)
            except FileNotFoundError:
                self._lost = True
            if self._lost:
                return


@contextmanager
def claimed(run_dir: Path, owner: str) -> Iterator[Claim]:
    """Hold the claim on a run until the block ends. `owner` names the training: a worker takes over
    at once from a lost worker of the same one.

    Raises `Superseded` when another process keeps the claim for longer than a dead one could.
    """
    deadline = time.monotonic() + LIFE_S * 4 / 3
    part = run_dir / FOLDER / f".{uuid.uuid4().hex}"
    part.parent.mkdir(exist_ok=True)
    about = {"owner": owner, "host": socket.gethostname(), "pid": os.getpid()}
    with part.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # before it has a number: nobody sees it without the lock
        json.dump(about, file)
        file.flush()
        try:
            while True:
                newest = _newest(part.parent)
                holder = _holder(newest, owner) if newest else None
                if holder is None and (path := _take(part, newest)) is not None:
                    break
                if time.monotonic() > deadline:
                    raise Superseded(f"{run_dir.name} is being trained by {holder}")
                os.utime(part)
                time.sleep(POLL_S)
        finally:
            part.unlink()
        claim, done = Claim(path, owner), threading.Event()
        renewing = threading.Thread(target=claim._renew_until, args=(done,), daemon=True)
        renewing.start()
        try:
            yield claim
        finally:
            done.set()
            renewing.join()
            with suppress(FileNotFoundError):  # removed by the process that took it over
                os.utime(path, (0, 0))


def holder_of(run_dir: Path, owner: str = "") -> str | None:
    """Who claims the run, in words; None if nobody does, or the training `owner` itself."""
    newest = _newest(run_dir / FOLDER)
    return _holder(newest, owner) if newest else None


def _holder(path: Path, owner: str) -> str | None:
    try:
        about, age = json.loads(path.read_text()), time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return "another process, which has just begun"
    here = about["host"] == socket.gethostname()
    lives = is_locked(path) if here else age < LIFE_S
    words = f"process {about['pid']} on {about['host']}"
    return words if lives and about["owner"] != owner else None


def wait_until_free(run_dir: Path) -> None:
    """Wait while workers end that have outlived the process which started them. Raises UserError
    when they train on."""
    deadline = time.monotonic() + LIFE_S * 4 / 3
    while (holder := holder_of(run_dir)) is not None:
        if time.monotonic() > deadline:
            raise UserError(
                f"{run_dir.name} is being trained by {holder}: wait until that has ended, or start "
                "a run of its own without --resume"
            )
        time.sleep(POLL_S)


def _take(part: Path, void: Path | None) -> Path | None:
    """Give the claim `part` the number behind that of a void one; None if another was faster."""
    number = int(void.name) + 1 if void else 1
    path = part.with_name(f"{number:06d}")
    try:
        os.link(part, path)
    except FileExistsError:
        return None
    if _newest(part.parent) != path:  # it looked long ago, and lower numbers were removed meanwhile
        path.unlink(missing_ok=True)
        return None
    for older in _numbered(part.parent):
        if older.name < path.name:
            older.unlink(missing_ok=True)
    return path


def _numbered(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("[0-9]*"))


def _newest(folder: Path) -> Path | None:
    return next(reversed(_numbered(folder)), None)
