"""The sample data's statistics that come with the project: they are used, and they are right."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from gan_train import recipes
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.metrics import evaluator, shipped
from gan_train.metrics.evaluator import Evaluator
from gan_train.metrics.extractors import build_extractor
from gan_train.metrics.real import RankShare, read_places
from gan_train.metrics.real_cache import RECORD, TENSORS, RealStatistics
from gan_train.tasks.task import SHIPPED_STATISTICS

CPU = torch.device("cpu")
LIMIT = 6_000_000
Stored = tuple[Index, Path]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """The demo's shards."""
    config = recipes.with_absolute_paths(recipes.load("demo"))
    directory = shard(config.data, tmp_path_factory.mktemp("shards"))
    return Index.load(directory), directory


def _evaluator(stored: Stored, cache: Path, shipped_statistics: Path | None) -> Evaluator:
    evaluate = recipes.load("demo").evaluate
    extractor = build_extractor(evaluate.extractor, None, None, cache, CPU)
    share = RankShare(0, 1, CPU, evaluate.batch)
    settings = (extractor.identity, extractor, evaluate.metrics, evaluate.images)
    return Evaluator(*settings, *stored, cache, share, shipped_statistics)


def _known(folder: Path = SHIPPED_STATISTICS) -> RealStatistics:
    found = shipped.load(folder, json.loads((folder / RECORD).read_text())["identity"])
    assert found is not None
    return found


def test_the_demo_measures_no_real_images(
    stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        pytest.fail("the real images were measured; run sample_data/make_statistics.py again")

    monkeypatch.setattr(evaluator, "measure_real", fail)
    first = _evaluator(stored, tmp_path, SHIPPED_STATISTICS).prepare()
    again = _evaluator(stored, tmp_path, None).prepare()  # from the workspace
    assert again.values == first.values and again.tensors.keys() == first.tensors.keys()
    assert "fd_efficientnet_lite0_null" in first.values
    assert sum(file.stat().st_size for file in SHIPPED_STATISTICS.iterdir()) < LIMIT


def test_some_images_have_the_shipped_features(stored: Stored) -> None:
    places = torch.tensor([0, 1, 2, 77, 1000, 1999])
    images, labels = read_places(*stored, places)
    features = build_extractor("efficientnet_lite0", None, None, Path(), CPU).features(images)
    tensors = _known().tensors
    torch.testing.assert_close(tensors["features"][places], features, rtol=0, atol=2e-4)
    assert labels is not None and torch.equal(tensors["labels"][places], labels)


def test_packing_loses_nothing_that_counts() -> None:
    known = _known()
    again = shipped.unpack(shipped.pack(known))
    assert again.values == known.values and again.tensors.keys() == known.tensors.keys()
    for name, tensor in known.tensors.items():
        torch.testing.assert_close(again.tensors[name], tensor, rtol=1e-6, atol=1e-6)


def test_others_are_passed_over_and_damage_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    identity = json.loads((SHIPPED_STATISTICS / RECORD).read_text())["identity"]
    with caplog.at_level(logging.WARNING):
        assert shipped.load(tmp_path, identity) is None
        assert shipped.load(SHIPPED_STATISTICS, identity | {"images": 500}) is None
    assert not caplog.text
    folder = tmp_path / "statistics"
    shutil.copytree(SHIPPED_STATISTICS, folder)
    data = bytearray((folder / TENSORS).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / TENSORS).write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert shipped.load(folder, identity) is None
    assert "computed anew" in caplog.text


@pytest.mark.slow
@pytest.mark.long
def test_all_real_images_measured_again_give_the_shipped_statistics(
    stored: Stored, tmp_path: Path
) -> None:
    measured, known = _evaluator(stored, tmp_path, None).prepare(), _known()
    assert known.values == pytest.approx(measured.values, rel=1e-4, abs=1e-7)
    assert measured.tensors.keys() == known.tensors.keys()
    for name, scale in (("features", 1e-4), ("radii", 1e-3), ("mean", 1e-4), ("root", 1e-4)):
        difference = (measured.tensors[name] - known.tensors[name]).abs().max()
        assert difference < scale, name
