"""What a training tells Prometheus, through the metrics agents of its Ray cluster.

Ray writes `ray_` before each name here, and `_total` behind that of a counter. The dashboard and
the alerts in `infra/monitoring` use these names, and `tests/unit/test_infra.py` holds that they
do. The complete curves are in the event log and in MLflow.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.util.metrics import Gauge

PREFIX = "gan_train_"
TAGS = ("run", "recipe")
GAUGES = {
    "images": "Real images that all workers together have trained on",
    "images_per_second": "Real images a second of all workers together, at the last tick",
    "workers": "Workers that train this run",
    "resolution": "Side of the images in pixels",
    "alpha": "Share of the newest block of a growing network, from 0 to 1",
    "augment_p": "Probability of adaptive augmentation; from 1 on it cannot do more",
    "checkpoint_timestamp_seconds": "When the newest checkpoint was complete, in Unix time",
    "workspace_free_bytes": "Free space of the file system that holds the run",
}
"""Gauges of rank 0 with what they mean. Those of `status` are there if the family has them."""
TAGGED = {
    "memory_bytes": ("rank", "Peak memory of a worker: on its GPU, else resident"),
    "loss": ("term", "Mean of a loss term since the tick before"),
    "gradient_norm": ("phase", "Mean norm of a phase's gradient since the tick before"),
    "learning_rate": ("optimizer", "Learning rate of an optimizer"),
    "score": ("measure", "Score of the newest checkpoint"),
}
"""Gauges with one value for each value of a further tag. All ranks tell `memory_bytes`."""
FAILURES = "failures"
FAILURES_HELP = "Times that the workers ended with an error, by its cause"
CAUSES = ("diverged", "refused", "lost")
"""Numbers that are not finite; a user's mistake; a worker, node or anything else that broke."""

COLLECTION = "RAY_enable_metrics_collection"
REPEAT_S = 5.0
"""Ray's agent forgets a gauge that it has not been told for two of its intervals of 10 s."""


def collected() -> bool:
    """Whether this Ray collects metrics. A private local instance does not (`cluster.LOOPBACK`)."""
    return os.environ.get(COLLECTION, "1").lower() not in ("0", "false")


@dataclass(frozen=True)
class Origin:
    """Which worker of which run tells."""

    run_dir: Path
    recipe: str
    rank: int
    workers: int

    @property
    def tags(self) -> dict[str, str]:
        return {"run": self.run_dir.name, "recipe": self.recipe}


class Exporter:
    """Tells Ray the newest values of one worker, until `repeating` ends."""

    def __init__(self, origin: Origin) -> None:
        from ray.util.metrics import Gauge

        self._origin = origin
        plain = {name: Gauge(PREFIX + name, text, TAGS) for name, text in GAUGES.items()}
        tagged = {
            name: Gauge(PREFIX + name, text, (*TAGS, tag)) for name, (tag, text) in TAGGED.items()
        }
        self._gauges: dict[str, Gauge] = plain | tagged
        self._values: dict[tuple[str, str], float] = {}  # the newest, by gauge and further tag

    def tick(self, values: dict[str, float]) -> None:
        """Take the values of a `metrics` event, and the position `nimg`."""
        found = {("memory_bytes", str(self._origin.rank)): values["memory_gib"] * 2**30}
        if self._origin.rank == 0:
            found["images", ""] = values["nimg"]
            found["workers", ""] = self._origin.workers
            found["workspace_free_bytes", ""] = shutil.disk_usage(self._origin.run_dir).free
            for name, value in values.items():
                group, _, member = name.partition("/")
                if (group in TAGGED) if member else (name in GAUGES):
                    found[group, member] = value
        self._take(found)

    def checkpoint(self, scores: dict[str, float]) -> None:
        """Take the scores of a checkpoint that has just been written."""
        if self._origin.rank == 0:
            found = {("score", name): value for name, value in scores.items() if name != "nimg"}
            self._take(found | {("checkpoint_timestamp_seconds", ""): time.time()})

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """Tell the newest values again every `REPEAT_S` while the block runs: a tick may take many
        minutes, and the agent would forget them."""
        over = threading.Event()

        def repeat() -> None:
            while not over.wait(REPEAT_S):
                self._tell()

        thread = threading.Thread(target=repeat, name="metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _take(self, found: dict[tuple[str, str], float]) -> None:
        self._values = self._values | found  # a new mapping: the thread may be reading the old one
        self._tell()

    def _tell(self) -> None:
        for (name, member), value in self._values.items():
            more = {TAGGED[name][0]: member} if name in TAGGED else {}
            self._gauges[name].set(value, self._origin.tags | more)


def count_failure(run: str, recipe: str, cause: str) -> None:
    """Count one failure of the workers. A counter outlives the process that told it."""
    from ray.util.metrics import Counter

    assert cause in CAUSES
    counter = Counter(PREFIX + FAILURES, FAILURES_HELP, (*TAGS, "cause"))
    counter.inc(1, {"run": run, "recipe": recipe, "cause": cause})


def exported() -> set[str]:
    """The names under which Prometheus finds all this."""
    gauges = {f"ray_{PREFIX}{name}" for name in (*GAUGES, *TAGGED)}
    return gauges | {f"ray_{PREFIX}{FAILURES}_total"}
