"""The handle of a training under way: followed, stopped and waited for. No engine takes part."""

from __future__ import annotations

import contextvars
import threading
from pathlib import Path

import pytest

from gan_train.runs.events import EventLog
from pipelines.compute import cluster
from pipelines.compute.cluster import RayEnded
from pipelines.compute.training import REFUSED, STOP, WORKER_LOG
from pipelines.flows.running import RunningTraining, leave_ray, save_and_end


def until_stopped(run_dir: Path, begun: threading.Event) -> str:
    """Train as workers do: until STOP appears, and then tell the end."""
    log = EventLog(run_dir)
    log.append("metrics", 10, values={})
    begun.set()
    while not (run_dir / STOP).exists():
        pass
    log.append("end", 10, status="stopped")
    return "saved"


def test_what_was_there_before_is_not_told_again(tmp_path: Path) -> None:
    EventLog(tmp_path).append("metrics", 1, values={})
    (tmp_path / WORKER_LOG).write_text("2026 WARNING worker 0: old\n")
    running: RunningTraining[None] = RunningTraining(tmp_path)
    assert running.events() == [] and running.warnings() == []
    EventLog(tmp_path).append("metrics", 2, values={})
    with (tmp_path / WORKER_LOG).open("a") as file:
        file.write("2026 WARNING worker 0: new\n")
    assert [event["nimg"] for event in running.events()] == [2]
    assert running.warnings() == ["WARNING: new"]
    assert running.events() == [] and running.warnings() == []


def test_a_training_is_stopped_and_waited_for(tmp_path: Path) -> None:
    (tmp_path / STOP).touch()
    (tmp_path / REFUSED).touch()
    EventLog(tmp_path).append("end", 5, status="stopped")
    begun = threading.Event()
    running: RunningTraining[str] = RunningTraining(tmp_path)
    assert not running.trains and not running.saving()
    running.start(lambda: running.train(lambda: until_stopped(tmp_path, begun)))
    assert begun.wait(60)
    assert running.trains and running.saving() and not running.done
    assert not (tmp_path / STOP).exists(), "what an earlier attempt left ends nothing"
    save_and_end([running])
    assert not running.saving()
    assert running.result() == "saved" and running.error() is None
    assert running.done and not running.trains


def test_workers_that_have_told_their_end_are_not_waited_for(tmp_path: Path) -> None:
    """Ray may have got the signal, too, and never return."""
    for_ever, begun = threading.Event(), threading.Event()

    def fit() -> None:
        until_stopped(tmp_path, begun)
        for_ever.wait()

    running: RunningTraining[None] = RunningTraining(tmp_path)
    running.start(lambda: running.train(fit))
    assert begun.wait(60)
    save_and_end([running], grace_s=60)
    assert not running.done and not running.saving()
    for_ever.set()
    running.result()


def test_workers_that_outlive_ray_are_waited_for(tmp_path: Path) -> None:
    """A Prefect worker sends SIGTERM to the whole group of a flow run, so that Ray ends at once."""
    begun, ended = threading.Event(), threading.Event()
    workers = threading.Thread(target=until_stopped, args=[tmp_path, begun])

    def fit() -> None:
        workers.start()
        begun.wait()
        ended.set()
        raise RayEnded("Ray has ended")

    running: RunningTraining[None] = RunningTraining(tmp_path)
    running.start(lambda: running.train(fit))
    assert ended.wait(60) and isinstance(running.error(), RayEnded)
    assert running.saving() and running.done and not running.trains
    save_and_end([running], grace_s=60)
    workers.join(60)
    assert not running.saving()


def test_ray_that_has_ended_is_left_once_its_trainings_have_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noticed = threading.Event()

    def fit() -> None:
        noticed.wait(60)
        raise RayEnded("Ray has ended")

    running: RunningTraining[None] = RunningTraining(tmp_path)
    left: list[bool] = []
    monkeypatch.setattr(cluster, "leave", lambda: left.append(running.done))
    running.start(lambda: running.train(fit))
    threading.Timer(0.5, noticed.set).start()
    leave_ray([running])
    assert left == [True]


def test_one_that_neither_ends_nor_trains_is_given_up(tmp_path: Path) -> None:
    for_ever = threading.Event()
    running: RunningTraining[bool] = RunningTraining(tmp_path)
    running.start(for_ever.wait)
    save_and_end([running], grace_s=600)  # nothing trains: there is nothing to save
    assert not (tmp_path / STOP).exists()
    for_ever.set()
    assert running.result()


def test_waiting_ends_with_the_work(tmp_path: Path) -> None:
    over = threading.Event()
    running: RunningTraining[bool] = RunningTraining(tmp_path)
    running.start(over.wait)
    running.wait(0.01)
    assert not running.done
    over.set()
    running.wait(600)
    assert running.done


def test_a_failure_is_handed_over_and_the_context_goes_along(tmp_path: Path) -> None:
    flow: contextvars.ContextVar[str] = contextvars.ContextVar("flow")
    flow.set("mine")

    def fail() -> None:
        raise RuntimeError(f"in {flow.get()}")

    running: RunningTraining[None] = RunningTraining(tmp_path)
    running.start(fail)
    assert str(running.error()) == "in mine"
    with pytest.raises(RuntimeError, match="in mine"):
        running.result()
