"""What every recipe gets by existing: two steps, an exact resume, one against two workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gan_train import recipes
from gan_train.adversary import ImageShape
from gan_train.config import Config
from gan_train.inference import Generator
from gan_train.runtime import PlainRuntime
from tests.training import assert_same_bits, newest, run, run_workers, weights

pytestmark = pytest.mark.slow
NARROW = {
    "progan": ["family.fmap_max=16", "family.mbstd_group=2"],
    "stylegan": ["family.channel_max=16", "family.channels={}", "family.mbstd_group=2"],
}
"""Overrides that make a family's widest networks small and its smallest batch divisible: layout,
losses and schedule stay."""
SIDE = {"progan": 64, "stylegan": 32}
RECIPES = sorted(path.stem for path in recipes.SHIPPED.glob("*.yaml"))


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    """The recipe on a few smooth pictures, for two steps, at `SIDE` pixels at most: where a family
    grows, the first steps are at the lowest level, and all levels up to there are built."""
    config = recipes.load(request.param)
    size = min(config.data.resolution, SIDE[config.family.name])
    y, x = np.mgrid[:size, :size] / size
    for number in range(12):
        folder = tmp_path / "source" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        waves = [np.sin(6 * (x * (number + 1) + y * c)) for c in range(3)]
        pixels = np.stack(waves, axis=-1) * 127 + 128
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png", compress_level=1)
    return steps(
        recipes.load(
            request.param,
            [
                f"workspace={tmp_path}",
                f"data.source={tmp_path / 'source'}",
                f"data.resolution={size}",
                "data.only_classes=[]",
                "data.loader_workers=0",
                "data.cache_mb=512",
                "evaluate.images=8",
                "evaluate.metrics=[diversity]",
                *NARROW[config.family.name],
            ],
        ),
        2,
    )


def steps(config: Config, count: int, precision: str | None = None) -> Config:
    """The same configuration, ended after `count` steps."""
    channels = 1 if config.data.colour == "grey" else 3
    shape = ImageShape(channels, config.data.resolution, ("a", "b"))
    batch = config.family.build(shape, config.train.batch).stages()[0].batch
    changed = {"total_kimg": count * batch / 1000}
    if precision:
        changed["precision"] = precision
    return config.model_copy(update={"train": config.train.model_copy(update=changed)})


def _train(config: Config, run_dir: Path) -> None:
    run(config, run_dir, PlainRuntime(run_dir))


def test_recipe(recipe: Config, tmp_path: Path) -> None:
    whole = run(recipe, tmp_path / "whole")

    # resumed after one of its two steps: the same bits
    halves = run(steps(recipe, 1), tmp_path / "halves")
    run(recipe, halves)
    for name in ("networks", "generator", "optimizers"):
        assert_same_bits(weights(halves, name), weights(whole, name))

    # two workers: the same training (float64, where sums of another order do not show)
    precise = steps(recipe, 2, "float64")
    one = weights(run(precise, tmp_path / "one"))
    run_workers(2, tmp_path, _train, precise, tmp_path / "two")
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, one[name], rtol=0, atol=1e-10, msg=name)

    # what was saved makes images
    generator = Generator.load(newest(whole))
    label = torch.tensor([0, 1]) if generator.conditional else None
    assert generator.images(generator.latents([0, 1]), label).shape[0] == 2
