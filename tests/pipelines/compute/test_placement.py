"""Workers on nodes of one accelerator type, on a real Ray whose node says that it has it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gan_train import recipes
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.runs import run_folder
from pipelines.compute import cluster, elastic
from pipelines.compute.room import room
from tests.training import tiny_config

pytestmark = [
    pytest.mark.slow,
    # Ray's own code uses what Ray has deprecated
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*"),
]


@pytest.fixture
def of_type_a100() -> Iterator[None]:
    """A node with two CPUs and the type A100; no GPU need be there."""
    os.environ.update(cluster.environment(local=True))
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        resources={cluster.accelerator("A100"): 1},
        include_dashboard=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.mark.usefixtures("of_type_a100")
def test_workers_stand_on_nodes_of_the_type(tiny_source: Path, tmp_path: Path) -> None:
    import ray

    right = tiny_config(
        tiny_source,
        tmp_path,
        cluster__workers=2,
        cluster__accelerator_type="A100",
        cluster__placement="spread",
    )
    wrong = recipes.change(right, {"cluster.accelerator_type": "H100"})
    shards = shard(right.data, right.workspace)
    run_dir = run_folder.new(right, shards)
    with pytest.raises(
        UserError, match=r"accelerator_type=H100: no node .* has it; there are: A100\."
    ):
        elastic.fit(wrong, shards, run_dir)
    assert [room(each.cluster, gpu=False) for each in (right, wrong)] == [2, 0]
    elastic.fit(right, shards, run_dir)
    assert run_folder.finished(run_folder.read_events(run_dir))

    taken = ray.util.placement_group([{"CPU": 1, cluster.accelerator("A100"): 1}])
    ray.get(taken.ready())
    assert elastic.room(right.cluster, gpu=False) == 0, "a CPU of no such type does not count"
