"""Scores of translation and super-resolution, by networks whose answers are known."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from gan_train import recipes
from gan_train.adversary import Adversary, Domain, ImageShape
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.images.resize import bicubic_upsample_float
from gan_train.metrics.scores import headline, scores_of
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.scoring import Scorer
from tests.training import run_workers

SIDE = 32


class Inverter(Adversary):
    """Black for white, both ways: its own inverse."""

    paired = False

    def __init__(self, shape: ImageShape) -> None:
        super().__init__()
        self.shape, self.generator = shape, nn.Identity()

    def translate(self, image: Tensor, to: Domain) -> Tensor:
        return -image


class Bicubic(Adversary):
    """What every network must beat."""

    scale, reach = 2, 2

    def __init__(self, shape: ImageShape) -> None:
        super().__init__()
        self.shape, self.generator = shape, nn.Identity()

    def upscale(self, low: Tensor) -> Tensor:
        return bicubic_upsample_float(low, 2)


def glyph_pairs(glyphs: Path, folder: Path) -> tuple[Path, Path]:
    """Sixty real glyphs, and the same with black for white, under the same names."""
    a, b = folder / "a", folder / "b"
    with zipfile.ZipFile(glyphs) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")][::140][:60]
        for number, name in enumerate(names):
            pixels = np.asarray(Image.open(archive.open(name)))
            for path, shown in ((a, pixels), (b, 255 - pixels)):
                path.mkdir(exist_ok=True)
                Image.fromarray(shown).save(path / f"{number}.png")
    return a, b


def settings(source: Path, workspace: Path, data: dict[str, Any], **evaluate: Any) -> Config:
    return Config.model_validate(
        {
            "name": "tiny",
            "workspace": workspace,
            "data": {"source": str(source), "resolution": SIDE, "colour": "grey", "lanes": 4}
            | data,
            "family": {"name": "progan"},  # stands for nothing here: the networks are given
            "evaluate": {"images": 16, "metrics": ["frechet", "kid"], "batch": 8} | evaluate,
        }
    )


def scorer(config: Config, network: type[Any], runtime: PlainRuntime) -> Scorer:
    shards = shard(config.data, config.workspace)
    index = Index.load(shards)
    return Scorer(config, index, shards, runtime, network(index.image_shape))


@pytest.fixture(scope="module")
def pairs(glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("pairs")
    a, b = glyph_pairs(glyphs, folder)
    second = {"source": str(b), "pairs": "names"}
    return settings(a, folder / "work", {"second": second, "held_out": 0.2})


def test_a_true_translation_scores_as_one(pairs: Config, tmp_path: Path) -> None:
    scored = scorer(pairs, Inverter, PlainRuntime(tmp_path)).measure()
    scores, metric = scored["scores"], "fd_efficientnet_lite0"
    for to in ("A", "B"):
        assert scores[f"{metric}_to_{to}"] < 0.85 * scores[f"{metric}_to_{to}_identity"]
        assert scores[f"truth_error_to_{to}"] < 0.003  # a step of 8 bits at most
        assert scores[f"truth_error_to_{to}_identity"] > 0.3
        assert scores[f"truth_distance_efficientnet_lite0_to_{to}"] < 0.01
        assert scores[f"cycle_error_{to}"] < 0.005
        assert f"{metric}_to_{to}_null" in scores
    both = (scores[f"{metric}_to_A"] + scores[f"{metric}_to_B"]) / 2
    assert scores[metric] == pytest.approx(both)
    decides = headline(scores_of(scores, scored["protocol"]))
    assert decides is not None and decides.name == metric
    assert scored["protocol"]["images"] == 16


def test_translation_grid_shows_the_truth(pairs: Config, tmp_path: Path) -> None:
    images, columns = scorer(pairs, Inverter, PlainRuntime(tmp_path)).task.grid()
    rows = images.view(8, columns, 1, SIDE, SIDE).int()
    picture, there, back, truth = rows[:4]
    assert columns == 10
    assert (there - truth).abs().max() <= 1
    assert (back - picture).abs().max() <= 2
    assert (rows[7] - rows[5]).abs().max() <= 1
    assert (picture - truth).abs().float().mean() > 80


def test_unpaired_data_has_no_truth(pairs: Config, tmp_path: Path) -> None:
    assert pairs.data.second is not None
    config = recipes.change(pairs, {"data.second.pairs": "none", "workspace": str(tmp_path)})
    scores = scorer(config, Inverter, PlainRuntime(tmp_path)).measure()["scores"]
    assert not [name for name in scores if name.startswith("truth")]
    assert scores["cycle_error_A"] < 0.005


def _measure(config: Config, out: Path) -> None:
    runtime = PlainRuntime(out)
    scored = scorer(config, Inverter, runtime).measure()
    if runtime.rank == 0:
        torch.save(scored["scores"], out / "scores.pt")


@pytest.mark.slow
def test_two_workers_measure_the_same(pairs: Config, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    _measure(pairs, tmp_path / "one")
    run_workers(2, tmp_path, _measure, pairs, tmp_path / "two")
    one, two = (torch.load(tmp_path / n / "scores.pt", weights_only=True) for n in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_bicubic_scores_like_bicubic(glyphs: Path, tmp_path: Path) -> None:
    a, _ = glyph_pairs(glyphs, tmp_path)
    config = settings(a, tmp_path / "work", {"held_out": 0.2})
    made = scorer(config, Bicubic, PlainRuntime(tmp_path))
    scored = made.measure()
    scores = scored["scores"]
    for name in ("perceptual_efficientnet_lite0", "psnr_y", "ssim_y"):
        assert scores[name] == pytest.approx(scores[f"{name}_bicubic"], rel=0.01), name
    decides = headline(scores_of(scores, scored["protocol"]))
    assert decides is not None and decides.name == "perceptual_efficientnet_lite0"
    assert scored["protocol"]["images"] == 12
    images, columns = made.task.grid()
    assert images.shape[1:] == (1, 128, 128) and columns == 6


def test_whole_pictures_of_several_sets(glyphs: Path, tmp_path: Path) -> None:
    """Published small partners are used as they are; others are shrunk; odd borders are cut."""
    a, _ = glyph_pairs(glyphs, tmp_path)
    for name, folder in (("Five", "HR"), ("Five", "LRx2"), ("odd", "")):
        (tmp_path / "tests" / name / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    high = rng.integers(0, 256, (40, 48), np.uint8)
    Image.fromarray(high).save(tmp_path / "tests/Five/HR/img_1_HR.png")
    Image.new("L", (24, 20), 99).save(tmp_path / "tests/Five/LRx2/img_1_LR.png")
    Image.fromarray(high[:39, :47]).save(tmp_path / "tests/odd/a.png")
    pictures = str(tmp_path / "tests")
    config = settings(a, tmp_path / "work", {}, pictures=pictures)
    scores = scorer(config, Bicubic, PlainRuntime(tmp_path)).measure()["scores"]
    flat = 10 * np.log10(255**2 / np.square((high[2:-2, 2:-2] / 255.0 - 99 / 255.0) * 219).mean())
    assert scores["psnr_y_Five"] == pytest.approx(flat, abs=0.02)
    assert scores["psnr_y"] == pytest.approx((scores["psnr_y_Five"] + scores["psnr_y_odd"]) / 2)
    alone = settings(a, tmp_path / "work", {}, pictures=pictures, picture_sets=["odd"])
    only = scorer(alone, Bicubic, PlainRuntime(tmp_path)).measure()["scores"]
    assert only["psnr_y"] == pytest.approx(scores["psnr_y_odd"])
    wrong = settings(a, tmp_path / "work", {}, pictures=pictures, picture_sets=["Set5"])
    with pytest.raises(UserError, match=r"names Set5, which .* has not; it has Five, odd"):
        scorer(wrong, Bicubic, PlainRuntime(tmp_path))


def test_super_resolution_needs_unseen_pictures(glyphs: Path, tmp_path: Path) -> None:
    a, _ = glyph_pairs(glyphs, tmp_path)
    with pytest.raises(UserError, match=r"data\.held_out=0\.02, or name some"):
        scorer(settings(a, tmp_path / "work", {}), Bicubic, PlainRuntime(tmp_path))
