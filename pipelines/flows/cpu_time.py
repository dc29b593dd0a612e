"""Measures how much processor time the processes take that this command has started, by their role.

It reads `/proc`, so it knows nothing where there is none, as on macOS.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

WORKERS = "workers"
DRIVER = "driver"
ROLES = {
    "ray::RayTrainWorker": WORKERS,
    "ray::": "Ray",
    "/ray/": "Ray",
    "pipelines.flows.prefect_server": "Prefect's server",
}
"""The role of a process by what its command line contains; the first that fits counts."""
_EVERY_S = 2.0
_TICKS = os.sysconf("SC_CLK_TCK")
_PARENT, _USER, _SYSTEM = 1, 11, 12  # fields of /proc/<pid>/stat behind the name: proc(5)

Usage = dict[str, float]
"""Seconds of processor time since its start, by role."""


def usage() -> Usage:
    """What this process and its living descendants have used. A descendant without a role of its
    own counts as its parent; what this process started itself counts as the driver."""
    parents, seconds = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents[int(folder.name)] = int(fields[_PARENT])
        seconds[int(folder.name)] = (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS
    used: Usage = {}
    roles: dict[int, str | None] = {os.getpid(): DRIVER}
    for pid in parents:
        role = _role(pid, parents, roles)
        if role is not None:
            used[role] = used.get(role, 0.0) + seconds[pid]
    return used


def _role(pid: int, parents: Mapping[int, int], roles: dict[int, str | None]) -> str | None:
    """The role of a process, which `roles` remembers; None if it is not of this command."""
    if pid not in roles:
        above = _role(parents[pid], parents, roles) if parents.get(pid) else None
        roles[pid] = (above and _named(pid)) or above
    return roles[pid]


def _named(pid: int) -> str | None:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return None
    return next((role for text, role in ROLES.items() if text in command), None)


class Samples:
    """What `usage` was at some times, in milliseconds since 1970."""

    def __init__(self) -> None:
        self.taken: list[tuple[float, Usage]] = []

    def take(self) -> None:
        """Take a sample now."""
        self.taken.append((1000 * time.time(), usage()))

    def shares(self, first_ms: float, last_ms: float) -> dict[str, float]:
        """The shares of one core that each role used between two times, by the samples that lie
        between them; empty if fewer than two do. Processes that ended meanwhile are left out."""
        inside = [sample for sample in self.taken if first_ms <= sample[0] <= last_ms]
        if len(inside) < 2 or not inside[-1][1]:
            return {}
        (start, before), (end, after) = inside[0], inside[-1]
        span = (end - start) / 1000
        return {role: (after[role] - before.get(role, 0.0)) / span for role in after}


@contextmanager
def sampling() -> Iterator[Samples]:
    """Take samples every two seconds during the block, in a thread."""
    samples, over = Samples(), threading.Event()

    def follow() -> None:
        while not over.wait(_EVERY_S):
            samples.take()

    thread = threading.Thread(target=follow, name="cpu-time", daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()
