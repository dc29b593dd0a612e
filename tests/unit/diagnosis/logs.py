"""Event logs of trainings that never were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Event = dict[str, Any]
FD = "fd_efficientnet_lite0"


def start(**more: Any) -> Event:
    facts = {"images": 1000, "classes": 10, "resolution": 32, "precision": "float32"}
    return {"kind": "start", "nimg": 0, "time_ms": 0, **facts, **more}


def ticks(curves: dict[str, Sequence[float]], after: int = 0) -> list[Event]:
    """A tick every 1,000 images."""
    count = len(next(iter(curves.values())))
    return [
        {
            "kind": "metrics",
            "nimg": after + 1000 * (i + 1),
            "time_ms": 1000 * (i + 1),
            "values": {name: values[i] for name, values in curves.items()},
        }
        for i in range(count)
    ]


def checkpoint(kimg: float, fd: float | None, **scores: float) -> Event:
    decides = {} if fd is None else {FD: fd, f"{FD}_null": 5.0}
    return {
        "kind": "checkpoint",
        "nimg": round(1000 * kimg),
        "time_ms": round(1000 * kimg),
        "path": f"checkpoints/{round(1000 * kimg):012d}",
        "scores": decides | scores,
        "protocol": {"images": 2000},
    }


def variety(share: float, entropy: float = 0.95, accuracy: float = 0.9) -> dict[str, float]:
    """Scores of variety, where two real images differ by 8."""
    return {
        "pair_distance": 8 * share,
        "pair_distance_real": 8.0,
        "class_entropy": entropy,
        "class_entropy_real": 0.95,
        "class_accuracy": accuracy,
        "class_accuracy_real": 0.9,
    }


def scored(*fds: float, each: Sequence[dict[str, float]] = ()) -> list[Event]:
    """A checkpoint every 10 kimg."""
    more = each or [variety(0.95)] * len(fds)
    return [checkpoint(10 * (i + 1), fd, **more[i]) for i, fd in enumerate(fds)]
