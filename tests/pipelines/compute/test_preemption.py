"""A node that is told to end: Ray announces it, the workers save, and go on elsewhere with nothing
lost."""

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


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    with Nodes(tmp_path) as nodes:
        nodes.environment["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"] = "0.5"
        nodes.environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "100"  # as in infra/
        yield nodes


@pytest.mark.fault(
    "SIGTERM of a whole node, of which Ray gets a preemption notice",
    "its workers save a checkpoint and go on elsewhere; it counts as no failure",
)
def test_a_node_that_is_told_to_end(
    nodes: Nodes,
    tiny_source: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
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
    nodes.start("spare")
    told_at = time.monotonic()
    doomed.processes[0].terminate()
    wait(lambda: "end" in kinds())
    doomed.processes[0].wait(60)  # it ends once nobody uses it
    wait(lambda: "metrics" in kinds()[kinds().index("end") :])
    record_property("recovered_s", time.monotonic() - told_at)
    record_property("lost", "nothing")
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
