"""Training on a number of workers that follows the room on a real Ray."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gan_train import recipes
from gan_train.adversary import ImageShape
from gan_train.config import ClusterConfig
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import list_checkpoints
from gan_train.training.schedule import world_sizes
from pipelines.compute import cluster, elastic, training
from tests.training import tiny_config


class Other:
    """Somebody else's work, which takes room."""

    def pid(self) -> int:
        return os.getpid()


SHAPE = ImageShape(1, 8, ("blue", "green", "red"))


def test_bounds_are_given_in_one_word(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path, cluster__workers="2-8")
    assert (config.cluster.workers, config.cluster.max_workers) == (2, 8)
    assert recipes.check(config.model_dump(mode="json")) == config
    for wrong in ("8-2", "2-", "two"):
        with pytest.raises(UserError, match=r"cluster\.(max_)?workers"):
            recipes.check(config.model_dump(mode="json"), [f"cluster.workers={wrong}"])


def test_numbers_that_cannot_share_a_batch_are_skipped(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path, data__lanes=12, train__batch=48)

    def numbers(workers: str) -> list[int]:
        return world_sizes(
            recipes.check(config.model_dump(), [f"cluster.workers={workers}"]), SHAPE
        )

    assert numbers("2-8") == [2, 3, 4, 6]
    assert numbers("5-7") == [6]
    assert numbers("3") == [3]
    with pytest.raises(UserError, match=r"cluster\.workers=7"):
        numbers("7-8")


def test_no_wait_for_room_that_no_node_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers stand on nodes of one CPU each, and one of the nodes is lost."""
    dead = {"CPU": 0.0}
    left = {"CPU": 1.0}
    for moments, workers in (
        # the worker that is left leaves its room, and then Ray notices that the node is gone
        ([([left, left], [dead]), ([left, left], [left]), ([left], [left])], 1),
        # a spare node takes the place of the lost one
        ([([left, left], [left]), ([left, left], [left, left])], 2),
    ):
        looks = iter(moments)
        now: list[Any] = []

        def nodes(looks: Any = looks, now: list[Any] = now) -> list[dict[str, float]]:
            now[:] = next(looks)
            return list(now[0])

        monkeypatch.setattr(elastic, "nodes", nodes)
        monkeypatch.setattr("pipelines.compute.room.unused", lambda now=now: list(now[1]))
        monkeypatch.setattr(time, "sleep", lambda _: None)
        found = elastic._wait_for_room(ClusterConfig(workers=1), False, [1, 2], tmp_path)
        assert found == workers


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
# Ray's own code uses what Ray has deprecated
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")
def test_a_training_grows_and_shrinks_with_the_room(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(elastic, "LOOK_S", 1.0)
    monkeypatch.setattr(elastic, "SETTLE_S", 4.0)
    numbers: list[int] = []  # of workers, for each attempt
    begun: list[int] = []  # the length of the event log when an attempt began
    fit = training.fit

    def noted(config: Any, *arguments: Any, **options: Any) -> training.Outcome:
        numbers.append(config.cluster.workers)
        begun.append(len(run_folder.read_events(run_dir)))
        return fit(config, *arguments, **options)

    monkeypatch.setattr(training, "fit", noted)

    def taking_all_but_one() -> Any:
        return ray.remote(Other).options(num_cpus=cluster.resources()["CPU"] - 1).remote()

    config = tiny_config(
        tiny_source,
        tmp_path / "workspace",
        cluster__workers="1-2",
        train__total_kimg=1000,
        train__checkpoint_kimg=1.0,
        train__tick_kimg=0.2,
        train__sample_kimg=1000,
    )
    shards = shard(config.data, config.workspace)
    run_dir = run_folder.new(config, shards)
    ended: list[Any] = []

    def train() -> None:
        try:
            ended.append(elastic.fit(config, shards, run_dir))
        except Exception as error:
            ended.append(error)

    def wait_for_attempt(*expected: int) -> None:
        """Wait until the last of so many attempts has trained, with these numbers of workers."""
        while True:
            assert not ended, ended
            kinds = [event["kind"] for event in run_folder.read_events(run_dir)]
            if len(begun) == len(expected) and "metrics" in kinds[begun[-1] :]:
                assert tuple(numbers) == expected
                return
            time.sleep(0.5)

    other = taking_all_but_one()
    ray.get(other.pid.remote())
    trainer = threading.Thread(target=train)
    trainer.start()
    wait_for_attempt(1)

    ray.kill(other)
    wait_for_attempt(1, 2)
    grown = run_folder.read_events(run_dir)
    places = [place for place, event in enumerate(grown) if event["kind"] == "end"]
    assert [grown[place]["status"] for place in places] == ["stopped"]

    other = taking_all_but_one()  # it waits for the room that a worker leaves
    for pid in workers(run_dir)[:1]:
        os.kill(pid, signal.SIGKILL)
    wait_for_attempt(1, 2, 1)

    (run_dir / training.STOP).touch()
    trainer.join(60)
    assert isinstance(ended[0], training.Outcome), ended
    ticks = [e["nimg"] for e in run_folder.read_events(run_dir) if e["kind"] == "metrics"]
    assert ticks == sorted(set(ticks)), "no image is counted twice"
    ray.kill(other)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.fault(
    "SIGKILL of a worker whose room another job takes",
    "the training says what it waits for, and goes on from the last checkpoint when there is room",
)
@pytest.mark.usefixtures("local_ray")
@pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")
def test_a_fixed_number_of_workers_waits_for_its_room(
    tiny_source: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    record_property: Callable[[str, object], None],
) -> None:
    import ray

    cpus = int(cluster.resources()["CPU"])
    other = ray.remote(Other).options(num_cpus=1)
    config = tiny_config(
        tiny_source,
        tmp_path / "workspace",
        cluster__workers=cpus,
        train__total_kimg=1000,
        train__checkpoint_kimg=0.4,
        train__tick_kimg=0.08,
        train__sample_kimg=1000,
    )
    shards = shard(config.data, config.workspace)
    run_dir = run_folder.new(config, shards)
    log = run_dir / training.WORKER_LOG
    ended: list[Any] = []
    trainer = threading.Thread(target=lambda: ended.append(elastic.fit(config, shards, run_dir)))
    trainer.start()

    def wait(ready: Callable[[], object]) -> None:
        while not ready():  # the test's own timeout ends a wait in vain
            assert not ended, ended
            time.sleep(0.2)

    wait(lambda: list_checkpoints(run_dir))
    taker = other.remote()  # it waits for the room that a worker leaves
    os.kill(workers(run_dir)[0], signal.SIGKILL)
    ray.get(taker.pid.remote())
    wait(lambda: "waiting for room" in caplog.text)
    assert f"needed are {cpus} x 1 CPU, and {cpus - 1} of {cpus} CPUs" in caplog.text
    assert "resumed from" not in log.read_text()
    free = time.monotonic()
    ray.kill(taker)
    wait(lambda: "resumed from" in log.read_text())
    record_property("recovered_s", time.monotonic() - free)

    # Asked to stop while it waits, it ends
    taker = other.remote()
    os.kill(workers(run_dir)[0], signal.SIGKILL)
    ray.get(taker.pid.remote())
    said = caplog.text.count("waiting for room")
    wait(lambda: caplog.text.count("waiting for room") > said)
    (run_dir / training.STOP).touch()
    trainer.join(30)
    assert ended == [training.unchanged(run_dir)]
    ray.kill(taker)


def workers(run_dir: Path) -> list[int]:
    """The processes that train this run: they write its log of workers."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            links = {str(link.readlink()) for link in (entry / "fd").iterdir()}
        except OSError:
            continue
        if str(run_dir / training.WORKER_LOG) in links and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found
