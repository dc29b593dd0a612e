"""Processes of a training under Ray are killed or stopped, one after another: it goes on each time,
and ends in the very bits of a training that nobody disturbed."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gan_train import recipes
from gan_train.config import ClusterConfig, Config
from gan_train.data.sharding import shard
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import list_checkpoints
from gan_train.runs.events import read_events, read_with_offsets
from pipelines.compute import elastic, training
from pipelines.compute.cluster import RayEnded, connected
from tests.training import assert_same_bits, tiny_config, tiny_images, weights

pytestmark = [
    pytest.mark.slow,
    # Ray's own code uses what Ray has deprecated
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]

BOUND_S = 60.0
"""A machine with other work takes several times as long as the 20 s that an idle one may take."""


class Disturbed:
    """A training of two workers that goes on in a thread until it is stopped."""

    def __init__(self, config: Config, shards: Path) -> None:
        self.config, self.shards = config, shards
        self.run_dir = run_folder.new(config, shards)
        self.ended: list[Any] = []
        self._thread = threading.Thread(target=self._train)
        self._thread.start()

    def _train(self) -> None:
        try:
            self.ended.append(elastic.fit(self.config, self.shards, self.run_dir))
        except Exception as error:
            self.ended.append(error)

    def log(self) -> str:
        """What the workers have said."""
        path = self.run_dir / training.WORKER_LOG
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def workers(self) -> list[int]:
        """The processes that train now, in order of their ranks."""
        said = re.findall(r"worker (\d): process (\d+) of ", self.log())
        return [int(pid) for _, pid in sorted(said[-2:])]

    def wait(self, ready: Callable[[], object]) -> None:
        """Return when `ready`, while the training goes on."""
        deadline = time.monotonic() + 300
        while not ready():
            assert not self.ended, self.ended
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def after(self, fault: Callable[[], None]) -> float:
        """Seconds from a fault in mid-training until the workers have trained again."""
        starts, newest = self.log().count("resumed from"), list_checkpoints(self.run_dir)[:1]
        # the loss is never more than what was trained since a checkpoint
        self.wait(lambda: list_checkpoints(self.run_dir)[:1] != newest)
        begun = time.monotonic()
        fault()
        self.wait(lambda: self.log().count("resumed from") > starts)
        reached = run_folder.reached(read_events(self.run_dir))
        self.wait(lambda: run_folder.reached(read_events(self.run_dir)) > reached)
        return time.monotonic() - begun

    def stop(self) -> None:
        (self.run_dir / training.STOP).touch()
        self._thread.join(120)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disturbed]:
    folder = tmp_path_factory.mktemp("disturbed")
    config = tiny_config(
        tiny_images(folder / "source"),
        folder / "workspace",
        cluster__workers=2,
        cluster__timeout_s=10,
        cluster__max_failures=10,
        train__total_kimg=1000,
        train__checkpoint_kimg=0.4,
        train__tick_kimg=0.08,
        train__sample_kimg=1000,
    )
    with connected(ClusterConfig(workers=2)):
        run = Disturbed(config, shard(config.data, config.workspace))
        try:
            run.wait(lambda: list_checkpoints(run.run_dir))
            yield run
        finally:
            run.stop()


@pytest.mark.fault("SIGKILL of a worker", "trains on from the last checkpoint, in the same bits")
def test_a_killed_worker(
    disturbed: Disturbed, record_property: Callable[[str, object], None]
) -> None:
    victim = disturbed.workers()[1]
    assert os.getpriority(os.PRIO_PROCESS, victim) == os.getpriority(os.PRIO_PROCESS, 0), (
        "Ray's default is 15 more"
    )
    took = disturbed.after(lambda: os.kill(victim, signal.SIGKILL))
    record_property("recovered_s", took)
    assert took < BOUND_S


@pytest.mark.fault("SIGKILL of rank 0", "trains on from the last checkpoint, in the same bits")
def test_a_killed_rank_0(
    disturbed: Disturbed, record_property: Callable[[str, object], None]
) -> None:
    took = disturbed.after(lambda: os.kill(disturbed.workers()[0], signal.SIGKILL))
    record_property("recovered_s", took)
    assert took < BOUND_S


@pytest.mark.fault(
    "a rank stopped (SIGSTOP) or hung",
    "noticed within `cluster.timeout_s`, and replaced; a stopped one within a minute",
)
def test_a_stopped_rank(
    disturbed: Disturbed, record_property: Callable[[str, object], None]
) -> None:
    took = disturbed.after(lambda: os.kill(disturbed.workers()[1], signal.SIGSTOP))
    record_property("recovered_s", took)
    assert took < disturbed.config.cluster.timeout_s + BOUND_S


@pytest.mark.fault(
    "SIGTERM of a worker", "the workers save, and new ones go on: nothing is lost, no failure"
)
def test_a_worker_asked_to_end(
    disturbed: Disturbed, record_property: Callable[[str, object], None]
) -> None:
    ends = len([event for event in read_events(disturbed.run_dir) if event["kind"] == "end"])
    took = disturbed.after(lambda: os.kill(disturbed.workers()[1], signal.SIGTERM))
    record_property("recovered_s", took)
    record_property("lost", "nothing")
    events = read_events(disturbed.run_dir)
    end = [event for event in events if event["kind"] == "end"][ends]
    assert end["status"] == "stopped"
    assert f"checkpoints/{end['nimg']:012d} at" in disturbed.log(), "all of it was saved"


def test_all_that_leaves_no_trace(disturbed: Disturbed) -> None:
    """The weights are those of a training of the same length that nothing has disturbed."""
    disturbed.stop()
    (outcome,) = disturbed.ended
    assert isinstance(outcome, training.Outcome), outcome
    events = read_events(disturbed.run_dir)
    ticks = [event["nimg"] for event in events if event["kind"] == "metrics"]
    assert ticks == sorted(set(ticks)), "no image is counted twice"
    kinds = {event["kind"] for event, _ in read_with_offsets(disturbed.run_dir)}
    assert "cut" not in kinds, "what was repeated was the same"
    length = {"train.total_kimg": events[-1]["nimg"] / 1000}
    config = recipes.change(disturbed.config, length)
    quiet = run_folder.new(config, disturbed.shards)
    training.fit(config, disturbed.shards, quiet)
    assert_same_bits(weights(quiet), weights(disturbed.run_dir))


@pytest.mark.fault(
    "SIGKILL of the raylet of the only machine while a checkpoint is scored",
    "one message with cause and remedy, and no second try",
)
def test_ray_ends_while_a_checkpoint_is_scored(
    disturbed: Disturbed, record_property: Callable[[str, object], None]
) -> None:
    from ray._private.worker import global_worker

    disturbed.stop()  # it has the room of the workers
    node = global_worker.node
    assert node is not None
    long = {"evaluate.metrics": ["frechet"], "evaluate.images": 20_000}
    config = recipes.change(disturbed.config, long)
    checkpoint, *_ = list_checkpoints(disturbed.run_dir)

    def kill() -> None:
        while not list(config.workspace.glob(f"evaluate/*/{training.WORKER_LOG}")):
            time.sleep(0.1)
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        killed.append(time.monotonic())

    killed: list[float] = []
    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(RayEnded, match="give the command again") as told:
        training.evaluate(config, disturbed.shards, checkpoint)
    record_property("recovered_s", time.monotonic() - killed[0])
    thread.join()
    assert told.value.__cause__ is None, "else its task would be tried again"
