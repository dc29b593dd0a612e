"""On a cluster a node's raylet is killed, and the node goes with it; or Ray Train's controller is:
training goes on where there is room."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gan_train.config import Config
from gan_train.data.sharding import shard
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import list_checkpoints
from gan_train.runs.events import read_events, read_with_offsets
from pipelines.compute import training
from tests.nodes import Node, Nodes
from tests.training import tiny_config, tiny_images

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BOUND_S = 120.0
"""A machine with other work takes several times as long as the 20 s that an idle one may take."""

TRAIN = """
import sys
from pathlib import Path
from gan_train.runs import run_folder
from pipelines.compute import elastic
shards, run_dir = map(Path, sys.argv[1:])
elastic.fit(run_folder.configuration(run_dir), shards, run_dir)
"""


def child(parent: int, named: str) -> int:
    """The process with this name that another one has started."""
    listed = subprocess.run(
        ["ps", "-ww", "--ppid", str(parent), "-o", "pid=,args="],
        capture_output=True,
        text=True,
        check=True,
    )
    (pid,) = (row.split()[0] for row in listed.stdout.splitlines() if named in row)
    return int(pid)


def raylet(node: Node) -> int:
    """The process of a node's raylet."""
    return child(node.processes[0].pid, "/raylet ")


class Training:
    """A training on the nodes, driven from the head."""

    def __init__(self, nodes: Nodes, folder: Path, workers: str) -> None:
        config: Config = tiny_config(
            tiny_images(folder / "source"),
            folder / "workspace",
            cluster__address=nodes.address,
            cluster__workers=workers,
            train__total_kimg=1000,
            train__checkpoint_kimg=0.4,
            train__tick_kimg=0.08,
            train__sample_kimg=1000,
        )
        shards = shard(config.data, config.workspace)
        self.run_dir = run_folder.new(config, shards)
        self._log = self.run_dir / training.WORKER_LOG
        self._command = nodes.command(sys.executable, "-c", TRAIN, str(shards), str(self.run_dir))

    def wait(self, ready: Callable[[], object]) -> None:
        """Return when `ready`, while the training goes on."""
        deadline = time.monotonic() + 300
        while not ready():
            assert self._command.poll() is None, self._command.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def after_the_loss_of(self, process: int) -> float:
        """Seconds from the death of a process until the workers have trained again."""
        starts = self._log.read_text().count("resumed from")
        begun = time.monotonic()
        os.kill(process, signal.SIGKILL)
        self.wait(lambda: self._log.read_text().count("resumed from") > starts)
        reached = run_folder.reached(read_events(self.run_dir))
        self.wait(lambda: run_folder.reached(read_events(self.run_dir)) > reached)
        return time.monotonic() - begun

    def ranks(self) -> list[int]:
        """The ranks of the processes that train, in order of their start."""
        return [int(rank) for rank in re.findall(r"worker (\d): process", self._log.read_text())]

    def stop(self) -> None:
        """Stop the training."""
        (self.run_dir / training.STOP).touch()
        told, _ = self._command.communicate(timeout=BOUND_S)
        assert self._command.returncode == 0, told

    def kill(self) -> None:
        self._command.kill()
        self._command.communicate()


class Cluster(NamedTuple):
    """Nodes of one CPU each, beside the head, and the training on two of them."""

    nodes: Nodes
    head: Node
    first: Node
    run: Training


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("nodes")
    with Nodes(folder) as nodes:
        head = nodes.start("head")
        nodes.start("kept")
        first = nodes.start("first")
        run = Training(nodes, folder, "1-2")
        try:
            run.wait(lambda: list_checkpoints(run.run_dir))
            yield Cluster(nodes, head, first, run)
        finally:
            run.kill()


def goes_on(cluster: Cluster, without: int, ranks: list[int], record: Any) -> None:
    """The workers train again after the death of a process, as these ranks and in the same bits."""
    before = len(cluster.run.ranks())
    took = cluster.run.after_the_loss_of(without)
    record("recovered_s", took)
    assert took < BOUND_S
    assert sorted(cluster.run.ranks()[before:]) == ranks
    kinds = {event["kind"] for event, _ in read_with_offsets(cluster.run.run_dir)}
    assert "cut" not in kinds, "what was repeated was the same"


@pytest.mark.fault(
    "SIGKILL of Ray Train's controller on a cluster",
    "a new one trains on from the last checkpoint, in the same bits",
)
def test_a_killed_controller(cluster: Cluster, record_property: Any) -> None:
    """On one machine the controller is no process of its own, but part of the driver."""
    controller = child(raylet(cluster.head), "ray::TrainController")
    goes_on(cluster, controller, [0, 1], record_property)


@pytest.mark.fault(
    "SIGKILL of a raylet with a spare node",
    "trains on there from the last checkpoint, in the same bits",
)
def test_a_spare_node_takes_over(cluster: Cluster, record_property: Any) -> None:
    cluster.nodes.start("second")
    goes_on(cluster, raylet(cluster.first), [0, 1], record_property)


@pytest.mark.fault(
    "SIGKILL of a raylet without a spare node (`cluster.workers=1-2`)",
    "trains on from the last checkpoint with fewer workers",
)
def test_fewer_workers_go_on(cluster: Cluster, record_property: Any) -> None:
    before = len(cluster.run.ranks())
    took = cluster.run.after_the_loss_of(raylet(cluster.nodes.newest))
    record_property("recovered_s", took)
    assert took < BOUND_S
    assert cluster.run.ranks()[before:] == [0], "one worker"
    cluster.run.stop()
    ticks = [e["nimg"] for e in read_events(cluster.run.run_dir) if e["kind"] == "metrics"]
    assert ticks == sorted(set(ticks)), "no image is counted twice"
