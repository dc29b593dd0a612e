"""A disk of a few megabytes, for tests of what happens when it is full: a tmpfs in a namespace of
its own, which ends with the process that runs in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

_MOUNT = 'mount -t tmpfs -o size="$1" small "$2" && shift 2 && exec "$@"'


@cache
def _unshare() -> tuple[str, ...] | None:
    """The command that allows a mount of one's own here; None where none does."""
    program = shutil.which("unshare")
    for flags in ("-rm", "-m"):  # as a user whom the kernel lets make namespaces, or as root
        if program is None:
            break
        with tempfile.TemporaryDirectory() as folder:
            tried = [program, flags, "sh", "-c", _MOUNT, "sh", "1m", folder, "true"]
            if subprocess.run(tried, capture_output=True, check=False).returncode == 0:
                return program, flags
    return None


def allowed() -> bool:
    """Whether this machine lets a test mount a small disk."""
    return _unshare() is not None


def run_on(folder: Path, size: str, module: str, *arguments: str) -> str:
    """Run `python -m module *arguments` with a disk of this size, such as "4m", mounted on `folder`
    for it alone; returns what it printed. Raises CalledProcessError when it fails."""
    unshare = _unshare()
    assert unshare is not None
    command = [*unshare, "sh", "-c", _MOUNT, "sh", size, str(folder)]
    command += [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    return done.stdout


def fill(folder: Path, leave: int = 0) -> Path:
    """Fill the disk of `folder` up to `leave` bytes; returns the file that does it."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        while (free := shutil.disk_usage(folder).free) > leave:
            os.write(file.fileno(), bytes(min(free - leave, 1 << 16)))
    return path
