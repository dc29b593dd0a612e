"""Trainings on a cluster that is too small for them, and that Ray's own autoscaler grows."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gan_train import recipes
from gan_train.config import Config
from gan_train.data.sharding import shard
from gan_train.runs import run_folder
from pipelines.compute import training
from pipelines.compute.cluster import LOOPBACK
from tests import autoscaled
from tests.training import tiny_config

pytestmark = pytest.mark.slow

DRIVER = """
import logging, sys
from pathlib import Path
from gan_train import recipes
from gan_train.errors import UserError
from pipelines.compute import cluster, elastic
cluster.COMES_S = 4.0
elastic.LOOK_S = elastic.SETTLE_S = 1.0
logging.basicConfig(format="%(message)s", stream=sys.stdout)
logging.getLogger("pipelines").setLevel(logging.INFO)
for recipe in sys.argv[3:]:
    try:
        elastic.fit(recipes.load(recipe), *map(Path, sys.argv[1:3]))
    except UserError as error:
        print("refused:", error)
"""


@contextmanager
def driver(shards: Path, run_dir: Path, *configs: Config) -> Iterator[subprocess.Popen[str]]:
    """A process that trains by these configurations, one after another, and prints what it logs.
    Its Ray is on loopback, which Ray decides when it is imported."""
    recipe_of = {run_dir.parent / f"{number}.yaml": each for number, each in enumerate(configs)}
    for path, each in recipe_of.items():
        path.write_text(recipes.dump(each), encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER, *map(str, (shards, run_dir, *recipe_of))],
        env=os.environ | LOOPBACK,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_nodes_come_for_a_training(tiny_source: Path, tmp_path: Path) -> None:
    with autoscaled.head(version=2) as address:
        config = tiny_config(
            tiny_source, tmp_path / "workspace", cluster__address=address, cluster__workers=2
        )
        shards = shard(config.data, config.workspace)
        run_dir = run_folder.new(config, shards)
        more = recipes.change(config, {"cluster.workers": autoscaled.MOST + 1})
        with driver(shards, run_dir, config, more) as process:
            said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and run_folder.finished(run_folder.read_events(run_dir))
    assert said.startswith("the cluster has room for 0 of 2 workers; waiting for the nodes"), said
    assert "refused: cluster.workers=3: the cluster has 2 CPUs and 3 are needed" in said


@pytest.mark.long
def test_a_training_grows_with_the_nodes_that_it_asks_for(
    tiny_source: Path, tmp_path: Path
) -> None:
    with autoscaled.head(version=1) as address:
        config = tiny_config(
            tiny_source,
            tmp_path / "workspace",
            cluster__address=address,
            cluster__workers="1-2",
            train__total_kimg=1000,
            train__tick_kimg=0.2,
            train__sample_kimg=1000,
        )
        shards = shard(config.data, config.workspace)
        run_dir = run_folder.new(config, shards)

        def kinds() -> str:
            return " ".join(event["kind"] for event in run_folder.read_events(run_dir))

        with driver(shards, run_dir, config) as process:
            while "metrics" not in kinds().partition(" end ")[2]:
                assert process.poll() is None
                time.sleep(0.2)
            (run_dir / training.STOP).touch()
            said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    numbers = [line for line in said.splitlines() if line.startswith("training on")]
    assert numbers == ["training on 1 workers", "training on 2 workers"], said
    ticks = [e["nimg"] for e in run_folder.read_events(run_dir) if e["kind"] == "metrics"]
    assert ticks == sorted(set(ticks)), "no image is counted twice"
