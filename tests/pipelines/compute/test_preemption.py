"""A node whose end Ray has announced: the workers save, and go on elsewhere with nothing lost."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gan_train.data.sharding import shard
from gan_train.runs import run_folder
from gan_train.runs.events import read_events
from pipelines.compute import training
from tests.nodes import Nodes
from tests.training import tiny_config

pytestmark = pytest.mark.slow

FIND = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print([node["NodeID"] for node in ray.nodes() if "CPU" in node["Resources"]][0])
"""


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with Nodes(tmp_path) as nodes:
        nodes.environment["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.5"
        yield nodes


@pytest.mark.fault(
    "a preemption notice of Ray", "the workers save, and go on elsewhere: nothing is lost"
)
def test_a_node_that_will_be_taken_away(nodes: Nodes, tiny_source: Path, tmp_path: Path) -> None:
    nodes.start("head")
    doomed = nodes.start("doomed")
    config = tiny_config(
        tiny_source,
        tmp_path / "workspace",
        cluster__address=nodes.address,
        cluster__max_failures=0,  # it must not count as one
        family__stable_kimg=1000,
        train__total_kimg=1000,
        train__tick_kimg=0.5,
        train__checkpoint_kimg=1000,  # what is saved was saved for the notice
        train__sample_kimg=1000,
    )
    shards = shard(config.data, config.workspace)
    run_dir = run_folder.new(config, shards)
    code = (
        "import sys; from pathlib import Path; from gan_train.runs import run_folder\n"
        "from pipelines.compute import elastic\n"
        "shards, run_dir = map(Path, sys.argv[1:])\n"
        "elastic.fit(run_folder.configuration(run_dir), shards, run_dir)"
    )
    command = nodes.command(sys.executable, "-c", code, str(shards), str(run_dir))

    def wait(ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not ready():
            assert command.poll() is None, command.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def kinds() -> list[str]:
        return [event["kind"] for event in read_events(run_dir)]

    wait(lambda: "metrics" in kinds())
    found = nodes.command(sys.executable, "-c", FIND, nodes.address)
    node = found.communicate(timeout=120)[0].split()[-1]
    nodes.start("spare")
    ray = str(Path(sys.executable).with_name("ray"))
    notice = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken back")
    drained = nodes.command(
        *(ray, "drain-node", "--address", nodes.address, "--node-id", node, *notice),
        *("--deadline-remaining-seconds", "120"),
    )
    told, _ = drained.communicate(timeout=120)
    assert drained.returncode == 0, told
    wait(lambda: "end" in kinds())
    nodes.kill(doomed)
    wait(lambda: "metrics" in kinds()[kinds().index("end") :])
    (run_dir / training.STOP).touch()
    told, _ = command.communicate(timeout=120)
    assert command.returncode == 0, told

    events = read_events(run_dir)
    ends = [event for event in events if event["kind"] == "end"]
    assert [event["status"] for event in ends] == ["stopped", "stopped"]
    log = (run_dir / training.WORKER_LOG).read_text(encoding="utf-8")
    assert f"resumed from {run_dir}/checkpoints/{ends[0]['nimg']:012d}" in log
    ticks = [event["nimg"] for event in events if event["kind"] == "metrics"]
    assert ticks == sorted(set(ticks)), "no image is trained on twice"
