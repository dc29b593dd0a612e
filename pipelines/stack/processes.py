"""Tells the processes of a service from all others, and ends them.

A service's first process is started with a random mark in its environment, which its children
inherit, and which the kernel shows to their owner in `/proc/<pid>/environ`. So a number that the
system has given to another process is never mistaken for a service, and what a service has started
is found where its first process is dead, too.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

MARK = "GAN_TRAIN_STACK"
"""The environment variable with the mark."""
ENVIRONMENT = {
    # Ray's processes change their title, and would overwrite their environment with it
    "SPT_NOENV": "1"
}
_POLL_S = 0.1
_MOMENT_S = 0.001
_MEMORY, _ENVIRONMENT_END = 20, 48  # fields of /proc/<pid>/stat behind the name: proc(5)


def is_marked(pid: int, mark: str) -> bool:
    """Whether a process of this number runs and has the mark. A zombie does not run."""
    try:
        return f"{MARK}={mark}".encode() in environment(pid).split(b"\0")
    except OSError:  # it has ended, or it is another user's
        return False


def environment(pid: int) -> bytes:
    """The environment that a process was started with, each variable with a zero byte behind it;
    empty for a zombie.

    While a process takes up its program, the kernel shows an empty one, for a part of a
    millisecond or for as long as others have the processor; this waits until it is there. Raises
    OSError for a process that has ended or is another user's.
    """
    path = Path(f"/proc/{pid}/environ")
    while not (found := path.read_bytes()) and _takes_up_its_program(pid):
        time.sleep(_MOMENT_S)
    return found or path.read_bytes()  # it may have been there by the time of the other question


def _takes_up_its_program(pid: int) -> bool:
    """Whether a process has memory, which a zombie has not, and no environment in it yet."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[_MEMORY] != "0" and fields[_ENVIRONMENT_END] == "0"


def marked(mark: str) -> list[int]:
    """The numbers of all processes that have the mark."""
    numbers = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    return [pid for pid in numbers if is_marked(pid, mark)]


def send(pid: int, mark: str, number: signal.Signals) -> None:
    """Send a signal to the process of this number, if it runs and has the mark."""
    try:
        handle = os.pidfd_open(pid)  # from here on, no other process can take its place
    except ProcessLookupError:
        return
    try:
        if is_marked(pid, mark):
            signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:  # it has just ended
        pass
    finally:
        os.close(handle)


def end(pid: int, mark: str, patience_s: float) -> None:
    """End a service: its first process `pid`, which ends its own children, then what is left of
    those with the mark. Who has not ended after `patience_s` seconds is killed."""
    send(pid, mark, signal.SIGTERM)
    if _gone(pid, mark, patience_s):
        for child in marked(mark):
            send(child, mark, signal.SIGTERM)
        _gone(None, mark, 5)
    while left := marked(mark):  # what is killed may just have started another
        for child in left:
            send(child, mark, signal.SIGKILL)
        time.sleep(_POLL_S)


def _gone(pid: int | None, mark: str, patience_s: float) -> bool:
    """Wait until the process, or all processes with the mark, have ended; returns whether they
    have."""
    deadline = time.monotonic() + patience_s
    while is_marked(pid, mark) if pid is not None else marked(mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
