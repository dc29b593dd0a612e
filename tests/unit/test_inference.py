"""From checkpoint to images: what is loaded is what was averaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gan_train.errors import UserError
from gan_train.inference import Generator
from gan_train.runs.checkpoint import newest_valid
from tests.training import run, tiny_config


@pytest.fixture
def checkpoint(tiny_source: Path, tmp_path: Path) -> Path:
    run_dir = run(tiny_config(tiny_source, tmp_path, train__total_kimg=0.1), tmp_path / "run")
    folder = newest_valid(run_dir)
    assert folder is not None
    return folder


def test_a_checkpoint_makes_images_of_the_data_size(checkpoint: Path) -> None:
    """Also in mid-fade: the last step, at 96 images, was trained at half of the fade to 8 px."""
    generator = Generator.load(checkpoint)
    assert generator.family == "progan" and generator.shape.classes == ("blue", "green", "red")
    assert generator.adversary.status() == {"resolution": 8.0, "alpha": 0.5}
    z = generator.latents(range(5))
    images = generator.images(z, torch.tensor([0, 1, 2, 0, 1]))
    assert images.shape == (5, 1, 8, 8) and images.dtype == torch.uint8
    again = Generator.load(checkpoint).images(z[3:4], torch.tensor([0]))
    assert torch.equal(again, images[3:4])


def test_seeds_are_independent_of_their_company(checkpoint: Path) -> None:
    generator = Generator.load(checkpoint)
    assert torch.equal(generator.latents([3, 9])[1], generator.latents([9])[0])


def test_wrong_requests_are_named(checkpoint: Path) -> None:
    generator = Generator.load(checkpoint)
    z = generator.latents([0])
    with pytest.raises(UserError, match="blue, green, red"):
        generator.images(z)
    with pytest.raises(UserError, match="from 0 to 2"):
        generator.images(z, torch.tensor([3]))
    with pytest.raises(UserError, match=r"expected \[N, 8\]"):
        generator.images(torch.zeros(1, 4), torch.tensor([0]))
    with pytest.raises(UserError, match=r"no generator\.json"):
        Generator.load(checkpoint.parent)
