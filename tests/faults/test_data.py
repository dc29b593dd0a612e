"""A shard that is damaged while a training reads it: found, refused, mended, and gone on from."""

from __future__ import annotations

from pathlib import Path

import pytest

from gan_train.data.index import DamagedShard, Index
from gan_train.data.planning import plan_shards
from gan_train.data.sharding import shard
from gan_train.data.tars import in_tar
from gan_train.runs.checkpoint import newest_valid
from gan_train.runs.runtime import PlainRuntime
from tests.training import assert_same_bits, run, tiny_config, weights
from tests.unit.data.test_checksums import rot

MESSAGE = r"shard-\d+\.tar is damaged: sample \d+-\d+ has other .* `gan-train shard --verify`"


class Rotting(PlainRuntime):
    """Flips a bit of every image when the first checkpoint is there."""

    def __init__(self, run_dir: Path, data: Path, memory: Path) -> None:
        super().__init__(run_dir)
        self.data, self.memory = data, memory
        self.rotten = False

    def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        super().report(metrics, checkpoint)
        if checkpoint is not None and not self.rotten:
            self.rotten = True
            for info in Index.load(self.data).shards:
                # in the image of each sample, behind its label and its header
                places = [offset + in_tar(1) + 530 for offset in info.offsets]
                rot(self.data / info.name, self.memory, places)


@pytest.mark.fault(
    "bits that flip in verified shards while a training reads them",
    "the training stops and names shard, sample and remedy; after that, the run goes on from its "
    "last checkpoint, and ends in the same bits",
)
def test_a_training_on_rotting_shards_is_stopped_and_can_go_on(
    tiny_source: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_source, tmp_path, train__checkpoint_kimg=0.048, data__cache_mb=0)
    whole = run(config, tmp_path / "whole")
    data = shard(config.data, tmp_path)
    memory = plan_shards(config.data, None, tmp_path).memory
    broken = tmp_path / "broken"
    with pytest.raises(DamagedShard, match=MESSAGE):
        run(config, broken, Rotting(broken, data, memory))
    checkpoint = newest_valid(broken)
    assert checkpoint is not None and 0 < int(checkpoint.name) < 192
    with pytest.raises(DamagedShard):  # nothing is read in silence after a restart, either
        run(config, broken)
    shard(config.data, tmp_path, verify=True)
    run(config, broken)
    for name in ("networks", "generator", "optimizers"):
        assert_same_bits(weights(broken, name), weights(whole, name))
