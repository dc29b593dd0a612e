"""The room that workers find on a cluster, and waiting for it while others use it.

A training asks for room before Ray Train does, which gives up after ten tries of a minute each.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gan_train.config import ClusterConfig
from gan_train.files.atomic import write_aside
from pipelines.compute import autoscaler
from pipelines.compute.cluster import SAY_S, holds, needs, nodes, on_this_machine, unused

SETTLE_S = 6.0
"""Seconds in which workers that have ended leave their room. An elastic training waits so long for
room that the nodes have and others use, before it begins with fewer."""
ASK_S = 12.0
"""Seconds in which an autoscaler hears for sure of what is asked for: it looks every 5 s."""
_PLACEMENT = ".room"
"""The file with the id of the placement group in which a run's workers stand."""

log = logging.getLogger(__name__)


class NoRoom(RuntimeError):
    """Others use the room that the workers need."""


def room(cluster: ClusterConfig, gpu: bool) -> int:
    """How many workers there is room for in what nobody uses; call it inside `connected`."""
    return holds(cluster, gpu, unused())


def is_taken(cluster: ClusterConfig, gpu: bool) -> bool:
    """Whether others use the room that `cluster.workers` workers need. It is not taken when the
    cluster is too small even if nobody uses it: Ray says so."""
    return room(cluster, gpu) < cluster.workers <= holds(cluster, gpu, nodes())


@contextmanager
def waiting(cluster: ClusterConfig, gpu: bool, workers: int) -> Iterator[Callable[[], bool]]:
    """Wait in this block for room for so many workers, and call at every look what it yields.

    That says in a line what is waited for, at first after a moment and then every `SAY_S` seconds.
    Since the first line Ray is asked for the room, and with it an autoscaler; it returns whether
    Ray has found it, and then keeps it until the block ends.
    """
    due = time.monotonic() + SETTLE_S
    with ExitStack() as asking:
        found: Callable[[], bool] | None = None

        def look() -> bool:
            nonlocal due, found
            if time.monotonic() > due:
                due += SAY_S
                log.warning("waiting for room: %s", missing(cluster, gpu, workers))
                if found is None:
                    each = needs(cluster, gpu)
                    found = asking.enter_context(autoscaler.asked(each, workers, cluster.placement))
            return found is not None and found()

        yield look


def wait(cluster: ClusterConfig, gpu: bool, over: Callable[[], bool]) -> bool:
    """Return True as soon as the room is not taken, and False once `over` returns True; says what
    it waits for (`waiting`)."""
    with waiting(cluster, gpu, cluster.workers) as found:
        while is_taken(cluster, gpu) and not found():
            if over():
                return False
            time.sleep(0.5)
    return True


def is_found(cluster: ClusterConfig, gpu: bool, workers: int, over: threading.Event) -> bool:
    """Whether there is room for so many workers. Where there is none, the cluster is asked for it
    for `ASK_S` seconds, or until `over`: nodes that its autoscaler starts then are there later."""
    if room(cluster, gpu) >= workers:
        return True
    if on_this_machine(cluster):
        return False
    with autoscaler.asked(needs(cluster, gpu), workers, cluster.placement) as found:
        deadline = time.monotonic() + ASK_S
        while time.monotonic() < deadline and not over.wait(1.0):
            if found():
                return True
    return False


def missing(cluster: ClusterConfig, gpu: bool, workers: int) -> str:
    """What so many workers need, and what there is, in words."""
    kinds = ["CPU", *(["GPU"] if gpu else [])]
    each, free, whole = needs(cluster, gpu), unused(), nodes()

    def sums(there: list[dict[str, float]], kind: str) -> str:
        return f"{sum(node.get(kind, 0.0) for node in there):g}"

    needed = " and ".join(f"{each[kind]:g} {kind}" for kind in kinds)
    found = " and ".join(f"{sums(free, kind)} of {sums(whole, kind)} {kind}s" for kind in kinds)
    return (
        f"needed are {workers} x {needed}, and {found} of the cluster are free; it goes on by "
        "itself once they are"
    )


def check(cluster: ClusterConfig, gpu: bool) -> None:
    """Raise NoRoom when others use the room also after a moment."""
    deadline = time.monotonic() + SETTLE_S
    while is_taken(cluster, gpu):
        if time.monotonic() > deadline:
            raise NoRoom(missing(cluster, gpu, cluster.workers))
        time.sleep(0.2)


# ---- the room that a run's workers have ---------------------------------------------------------


def note(run_dir: Path, placement_group: Any) -> None:
    """Note in the run's folder where its workers stand, for `give_back`."""
    write_aside(run_dir / _PLACEMENT, placement_group.id.binary())


def give_back(run_dir: Path) -> None:
    """Give back the room of the workers whose controller died, and so end those that are left. Ray
    Train's own cleaner needs Ray's dashboard."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    path = run_dir / _PLACEMENT
    if path.exists():
        remove_placement_group(PlacementGroup(PlacementGroupID(path.read_bytes())))
