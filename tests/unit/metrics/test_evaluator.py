"""Whole scores of small samples: real images stand in for the generator's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from gan_train.config import DataConfig, EvaluateConfig
from gan_train.data.index import Index
from gan_train.data.loader import read_images
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.metrics import evaluator
from gan_train.metrics.collect import Generate
from gan_train.metrics.evaluator import Evaluator, needs_features
from gan_train.metrics.extractors import EFFICIENTNET, build_extractor
from gan_train.metrics.real import RankShare, read_places
from gan_train.sections import Metric

CPU = torch.device("cpu")
Stored = tuple[Index, Path]


@pytest.fixture(scope="module")
def letters(glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """1,135 glyphs of three letters, shards of 100."""
    return _shards(glyphs, tmp_path_factory.mktemp("letters"), classes="folder")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tests that do not mind whether the real images were measured before."""
    return tmp_path_factory.mktemp("cache")


def _shards(source: Path, folder: Path, **changes: Any) -> Stored:
    settings: dict[str, Any] = {"resolution": 32, "colour": "grey", "shard_images": 100}
    settings |= {"only_classes": ("A", "B", "G"), **changes}
    config = DataConfig(source=str(source), **settings)
    directory = shard(config, folder)
    return Index.load(directory), directory


def _evaluator(stored: Stored, cache: Path, images: int = 24, **settings: Any) -> Evaluator:
    config = EvaluateConfig(**{"batch": 10, **settings})
    extractor = None
    if needs_features(config.metrics):
        extractor = build_extractor("efficientnet_lite0", None, None, cache, CPU)
    share = RankShare(0, 1, CPU, config.batch)
    return Evaluator(EFFICIENTNET, extractor, config.metrics, images, *stored, cache, share)


def _real(stored: Stored, start: int) -> Generate:
    """A generator that answers with the real images from `start` on."""
    return lambda positions: read_places(*stored, positions + start)


def test_real_images_get_the_null_values(letters: Stored, cache: Path) -> None:
    """The second half of the real images, offered as samples, is what the null value is of."""
    compared = (
        *("fd", "sliced_wasserstein", "kid", "precision", "recall"),
        *("density", "coverage", "memorised", "memorised_p"),
        *("kid_within_class", "gan_train_accuracy"),
    )
    scores = _evaluator(letters, cache, metrics=get_args(Metric)[:-1]).score(_real(letters, 24))
    for name in compared:
        name = f"{name}_efficientnet_lite0"
        assert scores[name] == pytest.approx(scores[f"{name}_null"], rel=1e-9), name
    assert scores["fd_efficientnet_lite0"] > 1
    assert scores["memorised_efficientnet_lite0"] == 0.5  # exactly as near as the null
    names = [*compared[:5], "nearest_distance", *compared[5:]]
    plain = ("pair_distance", "pair_distance_within_class", "class_entropy", "class_accuracy")
    named = [f"{name}_efficientnet_lite0" for name in names] + [*plain]
    real = {"nearest_distance_efficientnet_lite0", *plain}
    # there is one group, and a class of two images; a p-value has no error
    unknown = ("pair_distance", "kid_within", "memorised_p")
    assert list(scores) == [
        stored
        for name in named
        for stored in (name, f"{name}_se", f"{name}_{'real' if name in real else 'null'}")
        if not stored.endswith("_se") or not stored.startswith(unknown)
    ]
    assert scores["fd_efficientnet_lite0_se"] > 0.1


def test_the_reference_has_no_distance_to_itself(letters: Stored, cache: Path) -> None:
    scores = _evaluator(letters, cache).score(_real(letters, 0))
    assert abs(scores["fd_efficientnet_lite0"]) < 1e-3
    assert scores["pair_distance"] == scores["pair_distance_real"]
    assert scores["pair_distance_within_class"] < scores["pair_distance"]
    assert scores["class_accuracy"] > 0.9  # fitted to these
    assert scores["precision_efficientnet_lite0"] == scores["recall_efficientnet_lite0"] == 1
    assert scores["coverage_efficientnet_lite0"] == scores["memorised_efficientnet_lite0"] == 1
    assert scores["memorised_p_efficientnet_lite0"] < 1e-6


def test_batches_change_nothing(letters: Stored, cache: Path, tmp_path: Path) -> None:
    whole = _evaluator(letters, cache).score(_real(letters, 100))
    parts = _evaluator(letters, tmp_path, batch=7).score(_real(letters, 100))
    assert parts == pytest.approx(whole, rel=1e-4, abs=1e-6)


def _fail(*_: object) -> None:
    pytest.fail("was called")


def test_statistics_are_cached_under_the_content_hash(
    letters: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _evaluator(letters, tmp_path, metrics=("kid",)).score(_real(letters, 50))
    (folder,) = tmp_path.glob("*/*")
    assert folder.name == "efficientnet_lite0-bilinear224-n24"
    assert folder.parent.name == letters[0].content_hash[:16]
    monkeypatch.setattr(evaluator, "measure_real", _fail)
    again = _evaluator(letters, tmp_path, metrics=("kid",)).score(_real(letters, 50))
    assert again == first


def test_damaged_statistics_are_computed_anew(
    letters: Stored, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = _evaluator(letters, tmp_path).prepare()
    (path,) = tmp_path.glob("*/*/statistics.safetensors")
    good = path.read_bytes()
    path.write_bytes(good[:5000] + bytes([good[5000] ^ 1]) + good[5001:])
    with caplog.at_level(logging.WARNING):
        again = _evaluator(letters, tmp_path).prepare()
    assert "computed anew" in caplog.text and again.values == first.values
    assert path.read_bytes() == good


def test_other_data_has_other_statistics(letters: Stored, glyphs: Path, tmp_path: Path) -> None:
    unlabelled = _shards(glyphs, tmp_path / "shards", classes="none")
    scores = _evaluator(unlabelled, tmp_path / "cache").score(_real(unlabelled, 24))
    _evaluator(letters, tmp_path / "cache").prepare()
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not [name for name in scores if "class" in name]
    ours, theirs = (_evaluator(part, tmp_path).protocol() for part in (unlabelled, letters))
    assert ours["data"] != theirs["data"]


def test_samples_without_labels_have_classes_all_the_same(letters: Stored, cache: Path) -> None:
    def unconditional(positions: Tensor) -> tuple[Tensor, None]:
        return read_places(*letters, positions)[0], None

    scores = _evaluator(letters, cache).score(unconditional)
    assert 0.5 < scores["class_entropy"] <= 1
    assert "class_accuracy" not in scores
    assert not [name for name in scores if "within_class" in name]


def test_ignored_classes_show_within_classes(letters: Stored, cache: Path) -> None:
    """Real images, of the class asked for or of the next one: nothing else changes."""

    def other_class(positions: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = read_places(*letters, positions + 60)
        assert labels is not None
        return images, (labels + 1) % 3

    evaluator = _evaluator(letters, cache, images=60, metrics=("kid", "conditional"))
    right, wrong = evaluator.score(_real(letters, 60)), evaluator.score(other_class)
    name = "kid_within_class_efficientnet_lite0"
    assert right[name] == pytest.approx(right[f"{name}_null"], rel=1e-9)
    assert wrong[name] > 10 * abs(right[name])
    assert wrong["kid_efficientnet_lite0"] == right["kid_efficientnet_lite0"]


def test_only_what_is_asked_for_is_scored(letters: Stored, cache: Path) -> None:
    evaluator = _evaluator(letters, cache, metrics=("kid",))
    assert list(evaluator.score(_real(letters, 0))) == [
        "kid_efficientnet_lite0",
        "kid_efficientnet_lite0_se",
        "kid_efficientnet_lite0_null",
    ]
    assert evaluator.metric == "fd_efficientnet_lite0"


def test_pixel_diversity_needs_no_feature_network(letters: Stored, tmp_path: Path) -> None:
    assert not needs_features(("diversity", "path_length"))
    assert needs_features(("diversity", "kid"))
    scores = _evaluator(letters, tmp_path, metrics=("diversity",)).score(_real(letters, 0))
    assert list(scores) == [
        "pair_distance",
        "pair_distance_real",
        "pair_distance_within_class",
        "pair_distance_within_class_real",
    ]


def test_a_small_data_set_lowers_n_and_says_so(
    glyphs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = _shards(glyphs, tmp_path, only_classes=("I",))  # 100 images
    with caplog.at_level(logging.WARNING):
        protocol = _evaluator(few, tmp_path, images=2000).protocol()
    assert (protocol["images"], protocol["null_images"]) == (100, 50)
    assert "N is 100" in caplog.text
    protocol = _evaluator(few, tmp_path, images=60).protocol()
    assert (protocol["images"], protocol["null_images"]) == (60, 50)
    index, shards = few
    seven = index.model_copy(update={"samples": 7})
    with pytest.raises(UserError, match=r"the data set has 7 images; .* at least 4 and 8"):
        _evaluator((seven, shards), tmp_path)
    with pytest.raises(ValidationError, match="greater than or equal to 4"):
        EvaluateConfig(images=3)


def test_null_value_of_a_small_data_set(glyphs: Path, tmp_path: Path) -> None:
    """N is 60 of 100: two halves of 50, which are not the reference."""
    few = _shards(glyphs, tmp_path / "shards", only_classes=("I",))
    values = _evaluator(few, tmp_path, images=60).prepare().values
    halves = _evaluator(few, tmp_path, images=50).prepare().values
    for name in ("fd_efficientnet_lite0_null", "recall_efficientnet_lite0_null"):
        assert values[name] == pytest.approx(halves[name], rel=1e-6)


def test_images_of_the_wrong_shape_are_refused(letters: Stored, cache: Path) -> None:
    with pytest.raises(AssertionError):
        _evaluator(letters, cache).score(
            lambda positions: (torch.zeros(len(positions), 3, 32, 32, dtype=torch.uint8), None)
        )


def test_places_are_read_run_by_run(letters: Stored) -> None:
    positions = torch.tensor([0, 1, 2, 95, 96, 104, 300])
    images, labels = read_places(*letters, positions)
    for place, image in zip(positions.tolist(), images, strict=True):
        assert torch.equal(image, read_images(*letters, place, 1)[0][0])
    assert labels is not None and len(labels) == 7


@pytest.mark.slow
def test_diversity_shows_collapse_where_the_distance_does_not(glyphs: Path, tmp_path: Path) -> None:
    """One letter only, and 64 pictures repeated, beside a healthy sample: all of them real images,
    so that every picture looks perfect."""
    stored = _shards(glyphs, tmp_path, classes="folder", only_classes=tuple("ABCDEFGH"))
    count = 256
    images, labels = read_images(*stored, 2 * count, 1500)
    assert labels is not None
    scorer = _evaluator(stored, tmp_path, images=count)

    def scores(chosen: Tensor) -> dict[str, float]:
        """Of these images, over and over if they are fewer than N."""
        return scorer.score(
            lambda places: (
                images[chosen[places % len(chosen)]],
                labels[chosen[places % len(chosen)]],
            )
        )

    healthy = scores(torch.arange(count))
    one_letter = scores((labels == 0).nonzero()[:, 0])
    repeated = scores(torch.arange(64))

    fd, recall, nearest = (
        f"{name}_efficientnet_lite0" for name in ("fd", "recall", "nearest_distance")
    )
    # an untrained network is at 300, a good one after some minutes of training at 80
    assert healthy[fd] < repeated[fd] < 80 and one_letter[fd] < 150
    assert one_letter["class_accuracy"] > 0.9  # which collapse cannot lower
    assert healthy["class_entropy"] > 0.95 and one_letter["class_entropy"] < 0.3
    assert one_letter["pair_distance"] < 0.95 * healthy["pair_distance"]
    assert healthy[recall] > 0.7 and repeated[recall] < 0.1
    assert repeated[nearest] < 0.01 * healthy[f"{nearest}_real"]
    assert healthy["pair_distance_within_class"] == pytest.approx(
        healthy["pair_distance_within_class_real"], rel=0.1
    )
