"""Back to w: its schedule by the paper's figures, and pictures whose w is known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from gan_train.config import DataConfig
from gan_train.data.images import Transform, decode, load_image
from gan_train.errors import UserError
from gan_train.inference import Generator
from gan_train.metrics.perceptual import EfficientNetPerceptual
from gan_train.sampling import projection
from gan_train.sampling.generate import regenerate
from gan_train.sampling.painter import Look, Painter
from gan_train.sampling.projection import noise_scale, picture_for, project, rate, save_projection
from tests.unit.sampling.fakes import SIDE, NoStyles, linear


class PixelDistance:
    """The squared distance of pixels."""

    name, suffix, resize, weights_sha256 = "pixels", "_pixels", "none", ""

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def known(generator: Generator, seed: int, label: int | None = None) -> tuple[Tensor, Tensor]:
    """w [1, w_dim] of a seed, and its image uint8 [C, R, R]."""
    painter, z = Painter(generator, Look()), generator.latents([seed])
    classes = None if label is None else torch.tensor([label])
    (image,) = painter.from_latents(z, classes, [seed])
    return painter.styles(z, classes, "test")[:, 0], image


def test_the_schedule_is_the_papers() -> None:
    """1000 steps: the rate rises for 50 and falls for 250; noise ends after 750."""
    rates = torch.tensor([rate(step, 1000) for step in range(1000)])
    assert torch.allclose(rates[50:750], torch.tensor(0.1))
    assert torch.allclose(rates[:50], 0.1 * (torch.arange(50) + 0.5) / 50)
    assert rates[875] == pytest.approx(0.05, rel=0.02) and 0 < rates[-1] < 1e-5
    assert (rates[750:].diff() < 0).all()
    noise = [noise_scale(step, 1000) for step in range(1000)]
    assert noise[0] == 0.05 and noise[375] == pytest.approx(0.05 / 4)
    assert noise[749] > 0 and set(noise[750:]) == {0.0}


def test_it_starts_at_the_mean_style() -> None:
    """w = mean + z A, so its mean is near `mean` and its squared deviation near |A|^2."""
    generator = linear()
    adversary = generator.adversary
    mean, deviation = projection._centre(generator, adversary, None)
    assert torch.allclose(mean[0], adversary.mean, atol=0.01)
    expected = math.sqrt(float(adversary.mixer.square().sum()))
    assert deviation == pytest.approx(expected, rel=0.02)
    generator = linear(conditional=True)
    adversary = generator.adversary
    of_star, _ = projection._centre(generator, adversary, "star")
    assert torch.allclose(of_star[0], adversary.mean + adversary.classes[2], atol=0.01)
    of_all, _ = projection._centre(generator, adversary, None)
    assert torch.allclose(of_all[0], adversary.mean + adversary.classes.mean(0), atol=0.01)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_that_the_generator_made_leads_back_to_its_w(channels: int) -> None:
    generator = linear(channels)
    w, image = known(generator, 11)
    found = project(generator, image, PixelDistance(), None, steps=400)
    assert torch.allclose(found.w, w, atol=1 / 127)  # 8 bits
    assert (found.image.int() - image.int()).abs().max() <= 1
    assert found.distance_after < 0.01 * found.distance_before
    again = project(generator, image, PixelDistance(), None, steps=400)
    assert torch.equal(again.w, found.w)


def test_w_is_written_and_draws_the_same_image_again(tmp_path: Path) -> None:
    generator = linear()
    _, image = known(generator, 11)
    found = project(generator, image, PixelDistance(), None, steps=20)
    pair, file = save_projection(found, image, tmp_path / "new" / "me.png")
    assert file == tmp_path / "new" / "me.safetensors"
    assert torch.equal(load_file(file)["w"], found.w) and found.w.shape == (1, 6)
    regenerate(generator, file, Look(), tmp_path / "again")
    with Image.open(pair) as both, Image.open(tmp_path / "again" / "0.png") as again:
        assert both.size == (128, 64)
        small = np.asarray(both)[::4, ::4]
        assert np.array_equal(small[:, :SIDE], image[0].numpy())
        assert np.array_equal(small[:, SIDE:], np.asarray(again))


def test_the_bundled_distance_leads_to_the_picture() -> None:
    """Real features of a real network: nearer in the distance, and in w."""
    generator = linear(3)
    w, image = known(generator, 11)
    distance = EfficientNetPerceptual(torch.device("cpu"))
    found = project(generator, image, distance, None, steps=100)
    assert found.distance_after < 0.02 * found.distance_before
    assert (found.w - w).norm() < 0.2 * (generator.adversary.mean - w).norm()


@pytest.mark.parametrize("crop", ["centre", "pad"])
def test_pictures_are_read_as_sharding_reads_them(crop: str, tmp_path: Path) -> None:
    file = tmp_path / "wide.png"
    Image.linear_gradient("L").resize((90, 40)).convert("RGB").save(file)
    data = DataConfig(source=".", resolution=64, crop=crop)  # type: ignore[arg-type]
    for channels, colour in ((1, "grey"), (3, "rgb")):
        picture = picture_for(linear(channels), file, data)
        transform = Transform(SIDE, colour, "lanczos", crop, "black", 10**8)  # type: ignore[arg-type]
        stored, _ = load_image(file.read_bytes(), transform)
        expected = torch.from_numpy(decode(stored, channels, SIDE).copy())
        assert picture.shape == (channels, SIDE, SIDE) and torch.equal(picture, expected)


def test_pictures_that_are_none(tmp_path: Path) -> None:
    file, data = tmp_path / "picture.png", DataConfig(source=".", resolution=16, max_pixels=100)
    with pytest.raises(UserError, match="no such picture"):
        picture_for(linear(), file, data)
    file.write_bytes(b"words")
    with pytest.raises(UserError, match="not an image; name another"):
        picture_for(linear(), file, data)
    Image.new("L", (20, 20)).save(file)
    with pytest.raises(UserError, match="20x20 pixels, allowed are 100"):
        picture_for(linear(), file, data)
    file.write_bytes(bytes(2_000_000))
    with pytest.raises(UserError, match="name a smaller picture"):
        picture_for(linear(), file, data)


def test_what_cannot_be_projected() -> None:
    picture = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    with pytest.raises(UserError, match="project needs a family with styles"):
        project(Generator(NoStyles(), "plain"), picture, PixelDistance(), None, 10)
    with pytest.raises(UserError, match="--steps 0: allowed: 1 or more"):
        project(linear(), picture, PixelDistance(), None, 0)
    with pytest.raises(UserError, match="--class oval: allowed"):
        project(linear(conditional=True), picture, PixelDistance(), "oval", 10)
