"""The room that workers find on a cluster, and waiting for it while others use it.

A training asks for room before Ray Train does, which gives up after ten tries of a minute each.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gan_train.config import ClusterConfig
from gan_train.files.atomic import write_aside
from pipelines.compute.cluster import can_grow, needs, nodes, unused

SETTLE_S = 6.0
"""Seconds in which workers that have ended leave their room. An elastic training waits so long for
room for all its workers, before it begins with fewer."""
SAY_S = 60.0
"""Seconds between two lines that say what a training waits for."""
_PLACEMENT = ".room"
"""The file with the id of the placement group in which a run's workers stand."""

log = logging.getLogger(__name__)


class NoRoom(RuntimeError):
    """Others use the room that the workers need."""


def room(cluster: ClusterConfig, gpu: bool, there: list[dict[str, float]] | None = None) -> int:
    """How many workers there is room for in what nobody uses, or in `there`, the resources of each
    node; call it inside `connected`."""
    each = needs(cluster, gpu)

    def fits(node: dict[str, float]) -> int:
        return int(min(node.get(name, 0.0) // need for name, need in each.items()))

    return sum(map(fits, unused() if there is None else there))


def is_taken(cluster: ClusterConfig, gpu: bool) -> bool:
    """Whether others use the room that `cluster.workers` workers need. It is not taken when the
    cluster is too small even if nobody uses it: Ray says so. Nor is it when there can be more
    nodes: an autoscaler adds them for those who ask Ray."""
    return room(cluster, gpu) < cluster.workers <= room(cluster, gpu, nodes()) and not can_grow()


def wait(cluster: ClusterConfig, gpu: bool, over: Callable[[], bool]) -> bool:
    """Return True as soon as the room is not taken, and False once `over` returns True. Says in a
    line what it waits for, at first after a moment and then every `SAY_S` seconds."""
    due = time.monotonic() + SETTLE_S
    while is_taken(cluster, gpu):
        if over():
            return False
        if time.monotonic() > due:
            due += SAY_S
            log.warning("waiting for room: %s", missing(cluster, gpu, cluster.workers))
        time.sleep(0.5)
    return True


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
