"""Which scores may be compared, and the real images' statistics on disk."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch

from gan_train.errors import UserError
from gan_train.metrics.protocol import Protocol, comparable, refuse_unless_comparable
from gan_train.metrics.real_cache import RECORD, TENSORS, RealStatistics, load, store

A: Protocol = {
    "data": "ab" * 32,
    "extractor": "efficientnet_lite0",
    "weights": "cd" * 32,
    "resize": "bilinear224",
    "images": 2000,
    "reference": "real images 0 to 1999 in stored order",
    "null_images": 2000,
}


def test_scores_under_one_protocol_are_comparable() -> None:
    assert comparable(A, dict(A)) is None
    refuse_unless_comparable(A, A | {"null_images": 1000})  # it only judges the null value
    assert comparable(A, A | {"latents": 0}) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": "ef" * 32}, "data sets (abababababab... and efefefefefef...)"),
        ({"extractor": "inception_v3_2015_12_05"}, "feature extractors"),
        ({"weights": "00" * 32}, "weights of the feature extractor"),
        ({"resize": "lanczos224"}, "resize filters or sizes (bilinear224 and lanczos224)"),
        ({"images": 500}, "numbers of images (2000 and 500)"),
        ({"reference": "others"}, "reference images"),
        ({"latents": 1}, "latents (0 and 1)"),  # without a word, they were those that choose
    ],
)
def test_any_difference_is_refused(change: Protocol, reason: str) -> None:
    assert f"different {reason}" in str(comparable(A, A | change))
    with pytest.raises(UserError, match="score both with the same shards"):
        refuse_unless_comparable(A | change, A)


def test_what_is_not_recorded_is_not_comparable() -> None:
    assert "2000 and not recorded" in str(
        comparable(A, {key: value for key, value in A.items() if key != "images"})
    )


STATISTICS = RealStatistics(
    {"mean": torch.arange(5.0).double(), "features": torch.rand(4, 5)}, {"fid_null": 5.25}
)


def _same(found: RealStatistics | None) -> bool:
    return (
        found is not None
        and found.values == STATISTICS.values
        and found.tensors.keys() == STATISTICS.tensors.keys()
        and all(torch.equal(found.tensors[name], t) for name, t in STATISTICS.tensors.items())
    )


def test_statistics_come_back_as_they_were(tmp_path: Path) -> None:
    assert load(tmp_path / "statistics", A) is None
    store(tmp_path / "statistics", A, STATISTICS)
    assert _same(load(tmp_path / "statistics", A))
    store(tmp_path / "statistics", A, STATISTICS)  # again, over the old ones
    assert _same(load(tmp_path / "statistics", A))
    assert sorted(p.name for p in (tmp_path / "statistics").iterdir()) == [RECORD, TENSORS]


@pytest.mark.parametrize("name", [RECORD, TENSORS])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_damage_is_noticed(
    name: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store(tmp_path, A, STATISTICS)
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes({"flip": data, "cut": data[:-20], "empty": b"", "gone": b""}[damage])
    if damage == "gone":
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path, A) is None
    assert ("computed anew" in caplog.text) == ((damage, name) != ("gone", RECORD))


def test_statistics_of_another_protocol_or_version_are_not_used(tmp_path: Path) -> None:
    store(tmp_path, A, STATISTICS)
    assert load(tmp_path, A | {"data": "00" * 32}) is None
    record = json.loads((tmp_path / RECORD).read_text())
    (tmp_path / RECORD).write_text(json.dumps(record | {"version": 0}))
    assert load(tmp_path, A) is None
    (tmp_path / RECORD).write_text("[1]")
    assert load(tmp_path, A) is None
