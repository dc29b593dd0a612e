"""`train.start_from`: a fresh run with the networks of another, and nothing else of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gan_train import recipes
from gan_train.adversary import Clock
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.runs import warm_start
from gan_train.runs.checkpoint import prune
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.trainer import Trainer
from tests.training import assert_same_bits, newest, run, tiny_config

SHORT: dict[str, Any] = {"train__total_kimg": 0.064}


def trainer(config: Config, run_dir: Path) -> Trainer:
    """As a run begins: built, and resumed or started."""
    run_dir.mkdir(parents=True, exist_ok=True)
    shards = shard(config.data, config.workspace)
    made = Trainer(config, Index.load(shards), shards, PlainRuntime(run_dir))
    made.resume()
    return made


@pytest.fixture
def trained(tiny_source: Path, tmp_path: Path) -> Path:
    """The checkpoint of a run of four steps."""
    return newest(run(tiny_config(tiny_source, tmp_path, **SHORT), tmp_path / "first"))


def test_networks_are_taken_and_progress_is_not(
    trained: Path, tiny_source: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_source, tmp_path, **SHORT, train__start_from=str(trained), seed=7)
    made = trainer(config, tmp_path / "second")
    networks = load_file(trained / "networks.safetensors")
    averaged = load_file(trained / "generator.safetensors")
    assert_same_bits(made.adversary.state_dict(), networks)
    assert_same_bits(made.averaged.state_dict(), averaged)
    assert any(not torch.equal(averaged[name], networks[name]) for name in averaged)
    assert made.clock == Clock() and not any(o.state for o in made.optimizers.values())

    # another seed alone would have given other networks
    other = trainer(tiny_config(tiny_source, tmp_path, seed=7), tmp_path / "third")
    assert not torch.equal(next(other.adversary.parameters()), next(made.adversary.parameters()))


def test_a_resumed_run_goes_on_from_its_own_checkpoint(
    trained: Path, tiny_source: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_source, tmp_path, **SHORT, train__start_from=str(trained))
    second = run(config, tmp_path / "second")
    shutil.rmtree(trained)  # is not looked at again
    made = trainer(config, second)
    assert made.clock.nimg == 64
    assert_same_bits(
        made.adversary.state_dict(), load_file(newest(second) / "networks.safetensors")
    )
    with pytest.raises(UserError, match=r"train\.start_from: .* -> None"):
        trainer(tiny_config(tiny_source, tmp_path, **SHORT), second)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"family__fmap_max": 4},
            r"discriminator\.\S+ is \[.*\] there, and \[.*\] in the networks",
        ),
        (
            {"data__colour": "rgb"},
            r"from_rgb\.4\.weight is \[8, 1, 1, 1\] there, and \[8, 3, 1, 1\]",
        ),
        ({"data__resolution": 16, "family__fmap_base": 64}, r"is absent there"),
        ({"family__conditional": False}, r"absent in the networks of this recipe"),
    ],
)
def test_other_networks_are_refused_with_the_first_difference(
    trained: Path, tiny_source: Path, tmp_path: Path, change: dict[str, Any], what: str
) -> None:
    config = tiny_config(tiny_source, tmp_path, train__start_from=str(trained), **change)
    with pytest.raises(UserError, match=what) as refusal:
        trainer(config, tmp_path / "second")
    assert "train.start_from" in str(refusal.value) and str(trained) in str(refusal.value)
    shape = Index.load(shard(config.data, config.workspace)).image_shape
    other = config.family.build(shape, config.train.batch)
    assert warm_start.misfit(trained, other) == str(refusal.value), "known before a run begins"


def test_networks_that_fit_are_known_before_a_run_begins(
    trained: Path, tiny_source: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_source, tmp_path)
    shape = Index.load(shard(config.data, config.workspace)).image_shape
    adversary = config.family.build(shape, config.train.batch)
    assert warm_start.misfit(trained, adversary) is None


def test_folders_without_whole_networks_are_refused(
    trained: Path, tiny_source: Path, tmp_path: Path
) -> None:
    def begin(folder: Path) -> Trainer:
        return trainer(
            tiny_config(tiny_source, tmp_path, train__start_from=str(folder)), tmp_path / "n"
        )

    with pytest.raises(UserError, match=r"holds no networks\.safetensors"):
        begin(tmp_path / "absent")
    copy = tmp_path / "copies" / "checkpoints" / trained.name
    shutil.copytree(trained, copy)
    begin(copy)
    data = bytearray((copy / "networks.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "networks.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"is damaged: networks\.safetensors is not what"):
        begin(copy)
    prune(tmp_path / "copies", keep=0, best=None)
    with pytest.raises(UserError, match="older ones keep their generator alone"):
        begin(copy)


def test_nothing_is_copied_when_something_differs() -> None:
    own = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert warm_start.difference(own, {"a": torch.ones(2), "b": torch.ones(3)}) is None
    assert warm_start.difference(own, {"a": torch.ones(2)}) == (
        "b is absent there, and [3] in the networks of this recipe"
    )
    assert warm_start.difference(own, {**own, "c": torch.ones(1), "b": torch.ones(4)}) == (
        "b is [4] there, and [3] in the networks of this recipe"
    )
    warm_start.take(own, {"a": torch.ones(2, dtype=torch.float64), "b": torch.ones(3)})
    assert own["a"].dtype == torch.float32 and own["a"].sum() == 2 and own["b"].sum() == 3


def test_the_path_becomes_absolute(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path, train__start_from="some/folder")
    assert recipes.with_absolute_paths(config).train.start_from == str(Path.cwd() / "some/folder")
    assert recipes.with_absolute_paths(tiny_config(tiny_source, tmp_path)).train.start_from is None
    assert recipes.check(config.model_dump(mode="json")) == config
