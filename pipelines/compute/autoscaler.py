"""Asks a cluster for room, which has its autoscaler add the nodes that are missing.

An autoscaler adds nodes for what waits in Ray, and for nothing else: whoever only looks whether
there is room would wait for ever. What an autoscaler is about to do, Ray tells its own commands
alone. Call all of this where Ray is connected.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def asked(each: dict[str, float], workers: int, placement: str) -> Iterator[Callable[[], bool]]:
    """Ask for room for so many workers, each with such resources, as long as the block lasts.

    Yields whether the room has been found. It is then kept until the end of the block, all of it;
    before, nothing is, so that two who wait never have half of the room each.
    """
    from ray.util.placement_group import (
        placement_group,
        placement_group_table,
        remove_placement_group,
    )

    group = placement_group([each] * workers, strategy=placement.upper())
    try:
        yield lambda: placement_group_table(group)["state"] == "CREATED"
    finally:
        remove_placement_group(group)


def is_absent() -> bool:
    """Whether the cluster surely has no autoscaler. One of the second version does not tell: there
    it is False, whether there is one or not."""
    report = _report()
    kinds = report["active_nodes"] if report else []
    return bool(kinds) and all(kind.startswith("node_") for kind in kinds)


def starts_nodes() -> bool:
    """Whether nodes are being started that have not joined the cluster yet."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    report = _report()
    if report is not None:
        return bool(report["pending_launches"] or report["pending_nodes"])
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    return bool(status.pending_launches or status.pending_nodes)


def _report() -> dict[str, Any] | None:
    """What an autoscaler of the first version says of itself; None where there is none. A cluster
    without one has a stand-in, which gives each node a kind of its own: `node_` and its id."""
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    status = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    report: dict[str, Any] | None = status.get("autoscaler_report")
    return report
