"""A signal ends a plain training in good order: a checkpoint, a status of its own, and a resume."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gan_train import __main__, recipes
from gan_train.data.index import Index
from gan_train.data.loader import Loader
from gan_train.data.sharding import shard
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import list_checkpoints, newest_valid
from gan_train.runs.events import last_event, read_events
from tests.training import tiny_config

GRACE_S = 30  # what Kubernetes and torchrun give
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


def _plain(recipe: str, run: str, slow_save: bool) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    if slow_save:
        from gan_train.training.trainer import Trainer

        Trainer.save = lambda self, score: time.sleep(60)  # type: ignore[method-assign]
    sys.exit(__main__.main([recipe, "--resume", run]))


def _begun(source: Path, workspace: Path, **changes: Any) -> tuple[Path, str]:
    """A run that would train for hours, and its recipe."""
    settings = {"train__total_kimg": 1e6, "train__checkpoint_kimg": 1e6, "train__threads": 1}
    config = tiny_config(source, workspace, **settings, train__sample_kimg=1e6, **changes)
    recipe = workspace / "tiny.yaml"
    recipe.write_text(recipes.dump(config))
    return run_folder.new(config, shard(config.data, config.workspace)), str(recipe)


def _until(what: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def _process(recipe: str, run_dir: Path, slow_save: bool = False) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training", "torch._dynamo", __name__])
    child = context.Process(target=_plain, args=(recipe, run_dir.name, slow_save))
    child.start()
    return child


@pytest.mark.fault(
    "SIGINT, SIGTERM or SIGHUP of a plain training, at the start and in mid-run",
    "a checkpoint within 30 s, status 130, 143 or 129, and the next start goes on from there",
)
@pytest.mark.parametrize("name", NAMES)
def test_a_signal(
    name: str, tiny_source: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    run_dir, recipe = _begun(tiny_source, tmp_path)
    number = signal.Signals[name]
    reached = -1
    for when in ("start", "metrics"):  # at the start, in mid-run of the next attempt
        known = len(read_events(run_dir))
        child = _process(recipe, run_dir)
        _until(
            lambda known=known, when=when: any(  # type: ignore[misc]
                event["kind"] == when for event in read_events(run_dir)[known:]
            )
        )
        assert child.pid is not None
        begun = time.monotonic()
        os.kill(child.pid, number)
        child.join(GRACE_S)
        assert child.exitcode == 128 + number
        record_property("recovered_s", time.monotonic() - begun)
        newest, last = newest_valid(run_dir), last_event(run_dir)
        assert newest is not None and last is not None
        assert (last["kind"], last["status"]) == ("end", "stopped")
        assert int(newest.name) == last["nimg"] > reached
        reached = last["nimg"]
    cuts = [event for event in read_events(run_dir) if event["kind"] == "start"]
    assert len(cuts) == 1, "the second attempt did not begin anew"
    record_property("lost", "nothing")


def test_the_second_signal_of_a_kind_kills(tiny_source: Path, tmp_path: Path) -> None:
    run_dir, recipe = _begun(tiny_source, tmp_path)
    child = _process(recipe, run_dir, slow_save=True)
    _until(lambda: any(event["kind"] == "metrics" for event in read_events(run_dir)))
    assert child.pid is not None
    for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGINT):
        os.kill(child.pid, number)
        time.sleep(0.5)
    assert child.exitcode is None, "a closing terminal may hang up twice"
    os.kill(child.pid, signal.SIGINT)
    child.join(GRACE_S)
    assert child.exitcode == -signal.SIGINT and not list_checkpoints(run_dir)


def test_loader_processes_are_deaf(tiny_source: Path, tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of a terminal: those must serve until the training has ended."""
    config = tiny_config(tiny_source, tmp_path)
    shards = shard(config.data, config.workspace)
    loader = Loader(
        Index.load(shards), shards, seed=0, lanes=4, block=4, grain=1, workers=1, cache_mb=0
    )
    before = set(multiprocessing.active_children())
    batches = loader.batches(0, 4096, 8)  # of more images than are sent ahead
    with contextlib.closing(batches):
        next(batches)
        (process,) = set(multiprocessing.active_children()) - before
        assert process.pid is not None
        for name in NAMES:
            os.kill(process.pid, signal.Signals[name])
        for _ in range(5):
            next(batches)
