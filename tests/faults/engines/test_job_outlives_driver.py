"""A Ray job whose driver was killed, and that is joined by whoever resumes the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from gan_train import recipes
from gan_train.data.sharding import shard
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import list_checkpoints
from pipelines.compute import jobs
from tests.ray_head import head
from tests.training import tiny_config

pytestmark = [
    pytest.mark.slow,
    # Ray's own code uses what Ray has deprecated
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]


@pytest.fixture
def dashboard() -> Iterator[str]:
    """The dashboard's address of a cluster of one node."""
    with head() as address:
        yield address


@pytest.fixture
def train() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `gan-train train`, in a session of its own; none outlives the test, or trains for
    longer than five minutes."""
    with ExitStack() as started:

        def start(recipe: Path, *more: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli.main", "train", str(recipe), *more],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            end = threading.Timer(300, kill, [process])
            end.start()
            started.callback(kill, process)
            started.callback(end.cancel)
            return process

        yield start


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to all processes of its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.fault(
    "the driver of a Ray job is killed, its job lives on, the run is resumed",
    "whoever resumes follows that job; the run is trained once",
)
def test_whoever_resumes_joins_the_job(
    dashboard: str, train: Any, tiny_source: Path, tmp_path: Path, record_property: Any
) -> None:
    config = tiny_config(
        tiny_source,
        tmp_path / "workspace",
        cluster__jobs=dashboard,
        train__total_kimg=1000,
        train__checkpoint_kimg=0.2,
    )
    shard(config.data, config.workspace)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(recipes.dump(config), encoding="utf-8")
    first = train(recipe)
    while not any(list_checkpoints(run_dir) for run_dir in run_folder.runs_of(config)):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.2)
    kill(first)
    first.communicate()
    (run_dir,) = run_folder.runs_of(config)

    since = time.monotonic()
    second = train(recipe, "--resume", run_dir.name)
    assert second.stdout is not None
    said = []
    for line in second.stdout:
        said.append(line)
        if "following it" in line:
            break
    assert second.poll() is None, "".join(said)
    record_property("recovered_s", time.monotonic() - since)
    record_property("lost", "nothing: the job trains on meanwhile")
    reached = run_folder.reached(run_folder.read_events(run_dir))
    while run_folder.reached(run_folder.read_events(run_dir)) == reached:
        assert second.poll() is None
        time.sleep(0.2)
    # stopped by the one who joined it, the job saves a checkpoint and ends
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=120)
    events = run_folder.read_events(run_dir)
    assert (events[-1]["kind"], events[-1]["status"]) == ("end", "stopped")
    told = Counter((event["kind"], event["nimg"]) for event in events)
    assert set(told.values()) == {1}, told.most_common(3)
    assert sum(event["kind"] == "start" for event in events) == 1
    trainings = [job for job in jobs.connect(dashboard).list_jobs() if job.metadata]
    assert [job.metadata["run"] for job in trainings] == [run_dir.name]
