"""Path lengths beside the other scores: trained, stored, compared, shown."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.metrics.evaluator import Evaluator
from gan_train.metrics.extractors import EFFICIENTNET
from gan_train.metrics.protocol import comparable
from gan_train.metrics.scores import headline, scores_of
from gan_train.runs import run_folder
from gan_train.runs.runtime import PlainRuntime
from gan_train.tasks import task
from gan_train.training.scoring import Scorer, evaluate_checkpoint
from tests.training import run, tiny_config

NAMES = ["ppl_z_full_efficientnet_lite0", "ppl_z_end_efficientnet_lite0"]


def _config(glyphs: Path, workspace: Path, **changes: Any) -> Config:
    settings = {
        "data__only_classes": ["I"],
        "train__total_kimg": 0.064,
        "evaluate__metrics": ["diversity", "path_length"],
        "evaluate__path_lengths": ["z_full", "z_end"],
        "evaluate__path_length_images": 5,
    }
    return tiny_config(glyphs, workspace, **(settings | changes))


@pytest.fixture(scope="module")
def trained(glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 64 images, whose only checkpoint was scored with path lengths."""
    workspace = tmp_path_factory.mktemp("workspace")
    return run(_config(glyphs, workspace), workspace / "run")


MEASURED = ("scores", "protocol", "blocks", "resolution", "alpha")
WITH_ERRORS = [told for name in NAMES for told in (name, f"{name}_se")]


def _anew(trained: Path, glyphs: Path, **changes: Any) -> dict[str, Any]:
    """The run's checkpoint, scored under other settings."""
    config = _config(glyphs, trained.parent, **changes)
    shards = shard(config.data, config.workspace)
    (folder,) = (trained / "checkpoints").iterdir()
    return evaluate_checkpoint(config, Index.load(shards), shards, folder, PlainRuntime(trained))


def test_a_run_stores_them_beside_the_score(trained: Path) -> None:
    (event,) = [e for e in run_folder.read_events(trained) if e["kind"] == "checkpoint"]
    assert list(event["scores"])[-4:] == WITH_ERRORS
    assert "pair_distance" in event["scores"]
    assert all(0.01 < event["scores"][name] < 1e6 for name in NAMES)
    told = event["protocol"]
    assert {key: told[key] for key in told if "path" in key or "perceptual" in key} == {
        "path_length_images": 5,
        "path_length_epsilon": "0.0001",
        "perceptual": "efficientnet_lite0",
        "perceptual_resize": "bilinear128",
        "perceptual_weights": EFFICIENTNET.weights_sha256,
    }
    assert run_folder.score_table(trained)[0][NAMES[0]] == event["scores"][NAMES[0]]
    stored = json.loads((trained / event["path"] / "scores.json").read_text())
    assert stored == {key: event[key] for key in MEASURED}


def test_a_checkpoint_is_scored_anew_alike(trained: Path, glyphs: Path) -> None:
    (event,) = [e for e in run_folder.read_events(trained) if e["kind"] == "checkpoint"]
    assert _anew(trained, glyphs) == {k: event[k] for k in MEASURED}


def test_nothing_else_is_made_for_path_lengths_alone(
    trained: Path, glyphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, "score", lambda *_: pytest.fail("was called"))
    found = _anew(trained, glyphs, evaluate__metrics=["path_length"])
    assert list(found["scores"]) == WITH_ERRORS


def test_they_change_no_other_score_and_no_comparison(
    trained: Path, glyphs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the statistics of the real images, which are found again in the cache. Pixels alone are
    measured here, so no feature network is loaded."""
    monkeypatch.setattr(task, "build_extractor", lambda *_: pytest.fail("was called"))
    without = _anew(trained, glyphs, evaluate__metrics=["diversity"])
    statistics = list((trained.parent / "statistics").glob("*/*"))
    with_them = _anew(trained, glyphs, evaluate__path_length_images=3)
    assert list((trained.parent / "statistics").glob("*/*")) == statistics
    assert {k: v for k, v in with_them["scores"].items() if k not in WITH_ERRORS} == without[
        "scores"
    ]
    assert not set(NAMES) & set(without["scores"])
    assert comparable(without["protocol"], with_them["protocol"]) is None
    both = dict.fromkeys(["fd_efficientnet_lite0", *NAMES], math.inf)
    decides = headline(scores_of(both, without["protocol"]))
    assert decides is not None and decides.name == "fd_efficientnet_lite0"


def test_a_family_without_w_is_refused_before_training(glyphs: Path, tmp_path: Path) -> None:
    config = _config(glyphs, tmp_path, evaluate__path_lengths=["z_end", "w_end"])
    shards = shard(config.data, config.workspace)
    index = Index.load(shards)
    adversary = config.family.build(index.image_shape, 16)
    with pytest.raises(UserError, match="w_end is measured between styles w, which ProGAN does"):
        Scorer(config, index, shards, PlainRuntime(tmp_path), adversary)


def test_a_family_with_w_has_them_in_both(glyphs: Path, tmp_path: Path) -> None:
    family = {"name": "stylegan", "z_dim": 8, "w_dim": 8, "channel_base": 64, "channel_max": 8}
    kinds = ["w_end", "w_full", "z_end", "z_full"]
    changes: dict[str, Any] = {"family": family, "evaluate__path_lengths": kinds}
    config = _config(glyphs, tmp_path, evaluate__metrics=["path_length"], **changes)
    shards = shard(config.data, config.workspace)
    index = Index.load(shards)
    adversary = config.family.build(index.image_shape, 16)
    found = Scorer(config, index, shards, PlainRuntime(tmp_path), adversary).measure()["scores"]
    names = [f"ppl_{kind}_efficientnet_lite0" for kind in kinds]
    assert list(found) == [name + end for name in names for end in ("", "_se")]
    assert len(set(found.values())) == 8
    assert all(0.01 < value < 1e6 for value in found.values())
