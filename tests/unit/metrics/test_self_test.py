"""The test of the measures, on real glyphs; and the page of nearest pairs."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy import stats

from gan_train.config import DataConfig
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.metrics.evaluator import Evaluator
from gan_train.metrics.extractors import EFFICIENTNET
from gan_train.metrics.nearest_page import SHOWN, nearest_pairs, page
from gan_train.metrics.real import RankShare
from gan_train.metrics.self_test import DEGREES, rank_correlation, self_test, table

CPU = torch.device("cpu")


@pytest.mark.parametrize("values", [[1, 2, 3, 5, 4], [2, 2, 3, 1, 5], [5, 4, 3, 2, 1]])
def test_the_rank_correlation_is_spearmans(values: list[float]) -> None:
    degrees = torch.arange(DEGREES)
    found = rank_correlation(degrees, torch.tensor(values))
    assert found == pytest.approx(stats.spearmanr(degrees.numpy(), values).statistic, abs=1e-12)
    assert rank_correlation(degrees, torch.ones(DEGREES)) == 0


def test_a_measure_sees_some_faults_and_is_unfit_for_others(glyphs: Path, tmp_path: Path) -> None:
    """Distances of pixels see copies, and cannot see which images are training images."""
    config = DataConfig(
        source=str(glyphs), resolution=32, colour="grey", classes="folder", only_classes=("A", "B")
    )
    directory = shard(config, tmp_path / "shards")
    index = Index.load(directory)
    share = RankShare(0, 1, CPU, 32)
    settings = (("diversity",), 128, index, directory, tmp_path / "cache", share)
    found = self_test(Evaluator(EFFICIENTNET, None, *settings), index, directory)
    assert list(found) == ["blur", "noise", "fewer classes", "copies of a few", "memorised"]
    copies, memorised = (
        found[fault]["pair_distance"] for fault in ("copies of a few", "memorised")
    )
    assert copies.fit and copies.correlation == 1
    assert copies.values[-1] < 0.2 * copies.values[0]
    assert not memorised.fit
    blurred = found["blur"]["pair_distance"].values
    assert blurred[-1] < blurred[0] == copies.values[0]
    written = table(found, 128)
    assert len(written.splitlines()) == 4 and "unfit" in written


def test_the_page_shows_the_nearest_pairs_and_escapes_text() -> None:
    generator = torch.Generator().manual_seed(0)
    real, other, fake = (torch.randn(60, 8, generator=generator) for _ in range(3))
    unseen = torch.cdist(other, real).amin(1)
    fake[7] = real[40] + 1e-3
    pairs = nearest_pairs(real, unseen, fake)
    assert (pairs.samples[0], pairs.training[0]) == (7, 40)
    assert len(pairs.samples) == SHOWN and pairs.distances.diff().min() >= 0
    samples = torch.arange(SHOWN * 48).remainder(256).view(SHOWN, 3, 4, 4).to(torch.uint8)
    written = page("<script>\x1b", pairs, samples, samples[:, :1])
    assert "<script>" not in written and "\x1b" not in written and "sample 7," in written
    encoded = re.findall(r'src="data:image/png;base64,([^"]+)"', written)
    assert len(encoded) == 2 * SHOWN and "http" not in written
    with Image.open(io.BytesIO(base64.b64decode(encoded[0]))) as first:
        assert first.size == (4, 4) and first.getpixel((1, 0)) == (1, 17, 33)
