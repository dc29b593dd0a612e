"""What the options of a look do to an image, on a family whose images can be computed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from gan_train.errors import UserError
from gan_train.inference import Generator
from gan_train.sampling.generate import generate, regenerate
from gan_train.sampling.painter import Look, Painter
from tests.unit.sampling.fakes import SIDE, STORED, LinearStyles, NoStyles, linear, pixels, shown


def painted(look: Look, seeds: list[int], generator: Generator | None = None) -> Tensor:
    """uint8 [N, C, R, R]"""
    generator = generator or linear()
    painter = Painter(generator, look)
    return torch.stack(list(painter.from_latents(generator.latents(seeds), None, seeds)))


def w_of(generator: Generator, seeds: list[int]) -> Tensor:
    """[N, w_dim], by the formula"""
    a = generator.adversary
    assert isinstance(a, LinearStyles)
    return a.mean + generator.latents(seeds) @ a.mixer


def test_without_options_images_are_those_that_the_registry_serves() -> None:
    generator = linear(channels=3)
    served = generator.images(generator.latents([3, 4]))
    assert torch.equal(painted(Look(), [3, 4], generator), served)
    assert torch.equal(
        painted(Look(truncation=0.5), [3, 4], generator),
        generator.images(generator.latents([3, 4]), truncation=0.5),
    )


def test_truncation_reaches_as_far_as_the_cutoff() -> None:
    generator = linear()
    mean = generator.adversary.mean
    (w,) = w_of(generator, [5])
    drawn = mean + 0.25 * (w - mean)
    (image,) = painted(Look(truncation=0.25, cutoff=3), [5])
    expected = pixels(torch.stack([drawn] * 3 + [w] * 7))
    assert (shown(image).int() - expected.int()).abs().max() <= 1
    assert not torch.equal(shown(image)[2], shown(image)[3])
    (image,) = painted(Look(truncation=0.25), [5])
    assert (shown(image).int() - pixels(drawn).int()).abs().max() <= 1


def test_noise_is_stored_absent_or_new() -> None:
    column = {
        name: painted(Look(noise=name), [5, 6])[:, 0, :, -1] for name in ("const", "none", "random")
    }
    assert (column["const"] == int(STORED * 127.5 + 128)).all()
    assert (column["none"] == 128).all()
    assert column["random"].float().std(dim=1).min() > 5
    assert not torch.equal(column["random"][0], column["random"][1])


@pytest.mark.parametrize("noise", ["const", "random"])
def test_an_image_depends_on_its_seed_alone(noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    look = Look(0.7, 4, noise)  # type: ignore[arg-type]
    together = painted(look, list(range(10)))
    assert torch.equal(painted(look, [7])[0], together[7])
    monkeypatch.setattr("gan_train.sampling.painter._AT_ONCE", 3)
    assert torch.equal(painted(look, list(range(10))), together)


def test_large_images_are_drawn_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    generator = linear()

    def spy(ws: Tensor, noise: object) -> Tensor:
        sizes.append(len(ws))
        return LinearStyles.synthesise(generator.adversary, ws, noise)

    generator.adversary.synthesise = spy
    monkeypatch.setattr("gan_train.sampling.painter._PIXELS_AT_ONCE", 4 * SIDE**2)
    painted(Look(), list(range(9)), generator)
    assert sizes == [4, 4, 1]


@pytest.mark.parametrize(
    ("look", "message"),
    [
        (Look(truncation=-2.5), r"--truncation -2.5: allowed: -2 to 2"),
        (Look(truncation=float("nan")), r"--truncation nan"),
        (Look(truncation=0.5, cutoff=11), r"--cutoff 11: allowed: 1 to 10"),
        (Look(truncation=0.5, cutoff=0), r"--cutoff 0: allowed: 1 to 10"),
        (Look(cutoff=4), r"--cutoff 4 .* give one"),
    ],
)
def test_looks_that_no_generator_has(look: Look, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Painter(linear(), look)


def test_a_family_without_styles_says_so() -> None:
    plain = Generator(NoStyles(), "plain")
    expected = plain.images(plain.latents([1, 2]))
    assert torch.equal(painted(Look(), [1, 2], plain), expected)
    for look in (Look(noise="const"), Look(truncation=0.5, cutoff=2)):
        with pytest.raises(UserError, match=r"needs a family with styles.* is plain"):
            Painter(plain, look)


def test_classes_go_in_turn_or_stay(tmp_path: Path) -> None:
    generator = linear(conditional=True)
    classes = generator.adversary.classes
    generate(generator, range(4), None, Look(), tmp_path / "turn")
    generate(generator, range(4), "star", Look(), tmp_path / "stay")
    for folder, numbers in (("turn", [0, 1, 2, 0]), ("stay", [2] * 4)):
        for seed, number in enumerate(numbers):
            image = np.asarray(Image.open(tmp_path / folder / f"{seed}.png")).copy()
            w = w_of(generator, [seed])[0] + classes[number]
            off = shown(torch.from_numpy(image)[None]).int() - pixels(w).int()
            assert off.abs().max() <= 1
    with pytest.raises(UserError, match="allowed: round, square, star"):
        generate(generator, [0], "oval", Look(), tmp_path / "x")
    with pytest.raises(UserError, match="trained without classes"):
        generate(linear(), [0], "oval", Look(), tmp_path / "x")


@pytest.mark.parametrize("layered", [False, True])
def test_styles_from_a_file(layered: bool, tmp_path: Path) -> None:
    """One w for all layers, or one for each."""
    w = 0.8 * torch.rand(2, 10, 6, generator=torch.Generator().manual_seed(0))
    w = w if layered else w[:, 0]
    file = tmp_path / "w.safetensors"
    save_file({"w": w.contiguous()}, file)
    regenerate(linear(channels=3), file, Look(), tmp_path / "out")
    for number in range(2):
        image = np.asarray(Image.open(tmp_path / "out" / f"{number}.png")).copy()
        assert image.shape == (SIDE, SIDE, 3)
        expected = pixels(w[number]) if layered else pixels(w[number]).expand(10, 6)
        assert torch.equal(shown(torch.from_numpy(image).permute(2, 0, 1)), expected)


def test_files_that_hold_no_styles(tmp_path: Path) -> None:
    file, out = tmp_path / "w.safetensors", tmp_path / "out.png"
    with pytest.raises(UserError, match="no such file"):
        regenerate(linear(), file, Look(), out)
    file.write_bytes(b"no tensors here")
    with pytest.raises(UserError, match="not a safetensors file"):
        regenerate(linear(), file, Look(), out)
    for tensors in ({"v": torch.zeros(1, 6)}, {"w": torch.zeros(1, 5)}, {"w": torch.zeros(0, 6)}):
        save_file(tensors, file)
        with pytest.raises(UserError, match=r"needs a tensor `w` of shape \[N, 6\]"):
            regenerate(linear(), file, Look(), out)
    with pytest.raises(UserError, match="--w needs a family with styles"):
        regenerate(Generator(NoStyles(), "plain"), file, Look(), out)
    assert not out.exists()
