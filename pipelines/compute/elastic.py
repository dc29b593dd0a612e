"""Trains on as many workers as the cluster has room for (`cluster.workers: 2-8`).

Ray Train's own elastic groups may have any number of workers between their bounds, are ended
without a word to the workers when they are resized, and cannot be told which numbers share a batch
evenly. So a training consists of attempts here, each on a fixed number of workers. When there is
room for more, the workers save a checkpoint and end, and the next attempt has more of them; a
cluster that has none is asked for it, in case that an autoscaler can add nodes. When a worker is
lost, the next attempt has as many as there is room for. The order of images is the same
for any number of workers.

A training on a fixed number of workers, too, goes on in another attempt when Ray has announced that
a node will be taken away, as clouds do with spot machines, or when a worker gets SIGTERM: the
workers have saved a checkpoint and ended, no image is lost, and it counts as no failure.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gan_train import recipes
from gan_train.config import ClusterConfig, Config
from gan_train.data.index import Index
from gan_train.runs import claim
from gan_train.runs.events import EventReader
from gan_train.training.schedule import world_sizes
from pipelines.compute import training
from pipelines.compute.cluster import connected, gpus_wanted, holds, nodes
from pipelines.compute.room import SETTLE_S, NoRoom, is_found, room, waiting

LOOK_S = 60.0
"""Seconds between two looks for room for more workers. A change costs some seconds of training."""

log = logging.getLogger(__name__)


def fit(config: Config, shards: Path, run_dir: Path) -> training.Outcome:
    """Train like `training.fit`, and go on elsewhere when a node will be taken away; with
    `cluster.max_workers` on a number of workers that follows the cluster's room.

    A lost worker counts as a failure (`cluster.max_failures`), whatever the number after it. Waits
    for workers that have outlived an earlier driver of this run, and raises UserError when they
    train on.
    """
    claim.wait_until_free(run_dir)
    owner = uuid.uuid4().hex
    if config.cluster.max_workers is None:
        return _fit_fixed(config, shards, run_dir, owner)
    numbers = world_sizes(config, Index.load(shards).image_shape)
    failures = 0
    with connected(config.cluster):
        gpu = gpus_wanted(config.cluster)
        while True:
            workers = _wait_for_room(config.cluster, gpu, numbers, run_dir)
            if workers is None:
                return training.unchanged(run_dir)
            training.withdraw(run_dir, training.RESIZE)
            attempt = recipes.change(
                config,
                {
                    "cluster.workers": workers,
                    "cluster.max_workers": None,
                    "cluster.gpu": "yes" if gpu else "no",
                },
            )
            log.info("training on %d workers", workers)
            more = [number for number in numbers if number > workers]
            try:
                with _asking_for_more(config.cluster, gpu, workers, more, run_dir):
                    outcome = training.fit(attempt, shards, run_dir, restart=False, owner=owner)
            except NoRoom as error:
                log.info("others were faster: %s", error)
                continue
            except RuntimeError as error:
                failures += 1
                if failures > config.cluster.max_failures or _stopped(run_dir):
                    raise
                log.warning("a worker was lost; going on from the last checkpoint: %s", error)
                continue
            if _stopped(run_dir) or not (outcome.value or (run_dir / training.RESIZE).exists()):
                return outcome


def _fit_fixed(config: Config, shards: Path, run_dir: Path, owner: str) -> training.Outcome:
    """Train on a fixed number of workers, in as many attempts as nodes are taken away."""
    with connected(config.cluster):
        gpu = gpus_wanted(config.cluster)
        config = recipes.change(config, {"cluster.gpu": "yes" if gpu else "no"})
        while True:
            outcome = training.fit(config, shards, run_dir, owner=owner)
            if outcome.value:
                log.warning("a node or a worker will be taken away; going on elsewhere")
                _wait_for_room(config.cluster, gpu, [config.cluster.workers], run_dir)
            if _stopped(run_dir) or not outcome.value:
                return outcome


def _wait_for_room(
    cluster: ClusterConfig, gpu: bool, numbers: list[int], run_dir: Path
) -> int | None:
    """The largest of these numbers of workers for which there is room, as soon as the nodes would
    hold no more if nobody used them, or after a while. Waits as long as there is room for none;
    None when the training is asked to stop meanwhile."""
    enough = time.monotonic() + SETTLE_S
    with waiting(cluster, gpu, numbers[0]) as smallest_found:
        while not _stopped(run_dir):
            most, found = (
                max((n for n in numbers if n <= places), default=None)
                for places in (holds(cluster, gpu, nodes()), room(cluster, gpu))
            )
            if found is not None and (found == most or time.monotonic() > enough):
                return found
            if found is None and smallest_found():
                return numbers[0]
            time.sleep(1)
    return None


@contextmanager
def _asking_for_more(
    cluster: ClusterConfig, gpu: bool, workers: int, more: list[int], run_dir: Path
) -> Iterator[None]:
    """While this lasts, ask the workers to save and end once there is room for one of the larger
    numbers `more`."""
    over, log_of_attempt, trains = threading.Event(), EventReader.at_end(run_dir), False

    def watch() -> None:
        nonlocal trains
        while not over.wait(LOOK_S):
            # before they train, their own room may still count as unused
            trains = trains or bool(log_of_attempt.new())
            if trains and is_found(cluster, gpu, more[0] - workers, over):
                (run_dir / training.RESIZE).touch()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    if more:
        watcher.start()
    try:
        yield
    finally:
        over.set()
        if more:
            watcher.join()


def _stopped(run_dir: Path) -> bool:
    return (run_dir / training.STOP).exists()
