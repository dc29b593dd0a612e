"""Whole jobs on nodes without a shared folder, submitted by a machine that is no node: images,
shards and runs lie in a bucket."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gan_train import recipes
from gan_train.config import Config
from gan_train.data.sharding import shard
from gan_train.files.store import Store
from gan_train.runs import run_folder
from gan_train.runs.events import read_events
from tests import bucket
from tests.nodes import Nodes
from tests.training import (
    assert_same_bits,
    run,
    run_workers,
    tiny_config,
    tiny_images,
    weights,
)

pytestmark = pytest.mark.slow

WORKSPACE, IMAGES = "s3://cluster/team", "s3://cluster/images"


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """A head, two nodes, and an S3 server that all of them and this process reach."""
    with Nodes(tmp_path) as nodes, bucket.s3_server(nodes.outside) as port:
        bucket.make_bucket(port, "cluster", nodes.outside)
        nodes.environment |= bucket.environment(port, nodes.outside)
        for name, value in bucket.environment(port, nodes.outside).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("GAN_TRAIN_CACHE", str(nodes.copies("here")))
        yield nodes


def long(source: str, workspace: Path) -> Config:
    """A configuration whose training leaves time to end a node."""
    return tiny_config(
        Path(source),
        workspace,
        cluster__workers=2,
        train__checkpoint_kimg=2,
        train__keep_checkpoints=2,
        evaluate__metrics=["frechet"],
        family__stable_kimg=4,
    )


@pytest.mark.fault(
    "a node of a whole job lost, where nodes share no folder, but a bucket",
    "trains on from the last checkpoint on a spare node, in the same bits, and is registered",
)
def test_submitted_from_outside_a_node_lost_registered_and_stopped(
    nodes: Nodes, tmp_path: Path
) -> None:
    images = tiny_images(tmp_path / "images")
    for path in images.rglob("*.png"):
        Store(IMAGES).send(path, path.relative_to(images).as_posix())
    config = long("x", tmp_path / "w")
    config = recipes.change(config, {"workspace": WORKSPACE, "data.source": IMAGES})
    nodes.start("head")
    doomed = nodes.start("doomed")
    nodes.start("stays")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(recipes.dump(config), encoding="utf-8")

    def call(*arguments: str) -> subprocess.Popen[str]:
        command = (sys.executable, "-m", "pipelines.cli.main", *arguments)
        return nodes.command(*command, "--address", nodes.dashboard, outside=True)

    def checkpoints() -> set[str]:
        """The runs and checkpoints that are whole in the bucket."""
        keys = [Path(entry.key) for entry in store.entries("train")]
        return {key.parent.as_posix() for key in keys if key.name == "MANIFEST.json"}

    store = Store(WORKSPACE)
    submit = ("submit", str(recipe), "--python", sys.executable)
    command = call(*submit)
    deadline = time.monotonic() + 300
    while not checkpoints():
        assert command.poll() is None, command.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    nodes.kill(doomed)
    nodes.start("spare")
    output, _ = command.communicate(timeout=500)
    assert command.returncode == 0, output
    assert "champion" in output

    # nobody has a folder of another's, and this process, which took no part, finds the run
    (run_dir,) = run_folder.runs_of(config)
    found = run_folder.find(config, run_dir.name)
    events = read_events(found)
    assert run_folder.finished(events)
    assert (nodes.copies("spare")).exists() and "worker" in (found / "workers.log").read_text()
    for event in events:
        if event["kind"] in ("image", "checkpoint"):
            assert (found / event["path"]).exists(), event

    # the lost node changed no bit
    beside = long(str(images), tmp_path / "w")
    shard(beside.data, beside.workspace)
    run_workers(2, tmp_path, run, beside, tmp_path / "beside")
    assert_same_bits(weights(found), weights(tmp_path / "beside"))

    # a second one, whose schedule is fitted over there, saves into the bucket when it is stopped
    command = call(*submit, "--id=second", "--minutes=60", "--set=train.tick_kimg=0.5")
    while not (others := [one for one in run_folder.runs_of(config) if one != run_dir]) or not any(
        event["kind"] == "metrics" for event in read_events(run_folder.find(config, others[0].name))
    ):
        assert command.poll() is None, command.communicate()[0]
        time.sleep(0.5)
    stop = call("stop", "second")
    output, _ = stop.communicate(timeout=120)
    assert stop.returncode == 0 and f"--resume {others[0].name}" in output, output
    output, _ = command.communicate(timeout=60)
    assert command.returncode == 130 and "second is stopped" in output, output
    other = run_folder.find(config, others[0].name)
    end = read_events(other)[-1]
    assert (end["kind"], end["status"]) == ("end", "stopped")
    assert f"train/{other.name}/checkpoints/{end['nimg']:012d}" in checkpoints()
    trained = run_folder.configuration(other).train
    assert (trained.fitted_minutes, trained.tick_kimg) == (60, 0.5)
