"""The commands for pictures made of pictures, as they are typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gan_train import recipes
from gan_train.adversary import Clock, ImageShape
from gan_train.errors import UserError
from gan_train.images.resize import bicubic_upsample
from gan_train.inference import Generator
from gan_train.runs.checkpoint import save_generator
from pipelines.cli.main import main

SMALL = {
    "srgan-photos-x2": ["family.blocks=1", "family.width=2", "family.high_width=2"],
    "cyclegan-emoji-32": ["family.width=2", "family.blocks=1"],
}


def untrained(recipe: str, folder: Path) -> Path:
    """A checkpoint of the recipe, small; both begin close to doing nothing (`skip`)."""
    config = recipes.load(recipe, SMALL[recipe])
    torch.manual_seed(0)
    adversary = config.family.build(ImageShape(3, config.data.resolution), 4)
    weights = {
        f"{name}.{key}": value
        for name in adversary.averaged
        for key, value in getattr(adversary, name).state_dict().items()
    }
    folder.mkdir()
    save_generator(folder, weights, config, adversary.shape, Clock())
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    waves = np.add.outer(np.arange(40), 3 * np.arange(56))[..., None] * np.array([1, 2, 3]) % 256
    Image.fromarray(waves.astype(np.uint8)).save(tmp_path / "mine.png")
    return tmp_path / "mine.png"


def run(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def test_upscale(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = untrained("srgan-photos-x2", tmp_path / "model"), tmp_path / "out"
    command = ["upscale", picture, "--model", model, "--out", out, "--tile", "16"]
    assert run(*command) == 0
    assert capsys.readouterr().out.strip() == str(out / "mine-x2.png")
    made = torch.from_numpy(np.array(Image.open(out / "mine-x2.png"))).permute(2, 0, 1)
    small = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1)
    assert (made.int() - bicubic_upsample(small, 2).int()).abs().max() <= 1

    assert run(*command) == 2
    assert "--force" in capsys.readouterr().err
    assert run(*command, "--force") == 0


def test_translate(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = untrained("cyclegan-emoji-32", tmp_path / "model"), tmp_path / "out"
    command = ["translate", picture, "--model", model, "--out", out, "--to"]
    assert run(*command, "A", "--side", "32") == 0
    assert run(*command, "B") == 0
    with Image.open(out / "mine-to-A.png") as small:
        assert min(small.size) == 32 and max(small.size) < 56
    made, given = np.array(Image.open(out / "mine-to-B.png")), np.array(Image.open(picture))
    assert np.abs(made.astype(int) - given).max() <= 1
    capsys.readouterr()


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("cyclegan-emoji-32", ["upscale"], "makes no pictures larger"),
        ("srgan-photos-x2", ["translate", "--to", "B"], "srgan"),
    ],
)
def test_the_wrong_kind_of_model(
    picture: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recipe: str,
    arguments: list[str],
    message: str,
) -> None:
    model = untrained(recipe, tmp_path / "model")
    assert run(*arguments, picture, "--model", model, "--out", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_latents_and_pictures_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = untrained("cyclegan-emoji-32", tmp_path / "model")
    assert run("generate", model, "--out", tmp_path / "x.png") == 2
    assert "use gan-train translate" in capsys.readouterr().err


def test_a_domain_that_is_none(tmp_path: Path) -> None:
    picture = torch.zeros(3, 32, 32, dtype=torch.uint8)
    translator = Generator.load(untrained("cyclegan-emoji-32", tmp_path / "translator"))
    for domain in (None, "C"):
        with pytest.raises(UserError, match="allowed: A, B"):
            translator.converted(picture, domain)
    upscaler = Generator.load(untrained("srgan-photos-x2", tmp_path / "upscaler"))
    assert upscaler.converted(picture).shape == (3, 64, 64)
    with pytest.raises(UserError, match="has no domains"):
        upscaler.converted(picture, "B")
