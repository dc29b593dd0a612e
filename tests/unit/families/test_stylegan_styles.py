"""Truncation, mixing and sampling, of both generations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gan_train.adversary import ImageShape, StyleSpace
from gan_train.errors import UserError
from gan_train.families.stylegan.build import StyleGANConfig
from gan_train.families.stylegan.family import StyleGAN
from gan_train.nn.growth import Progress
from tests.unit.families.small import draws, normal, small

close = torch.testing.assert_close
BOTH = pytest.mark.parametrize("generation", [1, 2])


def grown(generation: int, **changes: object) -> StyleGAN:
    return small(generation=generation, start_resolution=16, **changes)


def labels(count: int) -> Tensor:
    return torch.arange(count) % 3


# ---- truncation --------------------------------------------------------------------------------


@BOTH
def test_truncation_is_the_formula(generation: int) -> None:
    family = grown(generation)
    assert isinstance(family, StyleSpace)
    mean, ws = family.generator.mapping.w_avg, normal(4, 6, 12)
    close(family.truncate(ws, 0.7), mean + 0.7 * (ws - mean))
    close(family.truncate(ws, 0.0), mean.expand(4, 6, 12))
    assert torch.equal(family.truncate(ws, 1.0), ws)
    for cutoff in range(7):
        drawn = family.truncate(ws, 0.3, cutoff)
        close(drawn[:, :cutoff], (mean + 0.3 * (ws - mean))[:, :cutoff])
        assert torch.equal(drawn[:, cutoff:], ws[:, cutoff:])


@BOTH
def test_classes_are_drawn_to_their_own_mean(generation: int) -> None:
    """Estimated here from other latents; each class by itself, whatever the batch."""
    family = grown(generation)
    label = torch.tensor([2, 0, 2, 1])
    means = family.class_means(label)
    assert torch.equal(means[0], means[2])
    close(family.class_means(label[1:2]), means[1:2])
    for mean, c in zip(means, label, strict=True):
        w = family.styles(normal(8000, 8), c.expand(8000)).detach()
        assert ((mean - w.mean(dim=0)).abs() < 5 * w.std(dim=0) / 1000**0.5).all()
    assert (means[0] - means[1]).abs().max() > 0.05
    ws = normal(4, 6, 12)
    expected = means[:, None] + 0.7 * (ws - means[:, None])
    close(family.truncate(ws, 0.7, label=label), expected)
    half = family.truncate(ws, 0.7, 2, label)
    close(half[:, :2], expected[:, :2])
    assert torch.equal(half[:, 2:], ws[:, 2:])


@BOTH
@pytest.mark.parametrize("conditional", [True, False])
def test_truncated_samples_come_closer_to_the_mean_image(
    generation: int, conditional: bool
) -> None:
    family, z = grown(generation, conditional=conditional), normal(4, 8)
    label = labels(4) if conditional else None
    mean = family.generator.mapping.w_avg.expand(4, -1)
    if label is not None:
        mean = family.class_means(label)
    middle = family.synthesise(mean[:, None].expand(-1, 6, -1), "const")
    w = family.styles(z, label)
    images = {psi: family.sample(z, label, psi) for psi in (1.0, 0.5, 1e-7)}
    for psi, image in images.items():
        drawn = mean + psi * (w - mean)
        close(image, family.synthesise(drawn[:, None].expand(-1, 6, -1), "const"))
    close(images[1e-7], middle, rtol=0, atol=1e-4)
    far, near = ((images[psi] - middle).square().mean() for psi in (1.0, 0.5))
    assert near < far


@BOTH
def test_a_sample_is_a_function_of_latent_and_class(generation: int) -> None:
    family, z = grown(generation), normal(6, 8)
    images = family.sample(z, labels(6))
    assert images.shape == (6, 3, 16, 16)
    close(family.sample(z[3:4], labels(6)[3:4]), images[3:4])
    other = family.sample(z, (labels(6) + 1) % 3)
    assert (images - other).abs().flatten(1).max(dim=1).values.min() > 1e-3
    assert (images[0] - images[3]).abs().max() > 1e-3  # of one class


# ---- mixing ------------------------------------------------------------------------------------


def crossovers(ws: Tensor) -> Tensor:
    """int64 [N]: how many of the first layers share the first layer's style."""
    same = (ws == ws[:, :1]).all(dim=2)  # [N, num_ws]
    for row in same:  # one change at most
        assert row.int().diff().ne(0).sum() <= 1
    for image, row in zip(ws, same, strict=True):
        assert (image[~row] == image[-1]).all()
    return same.sum(dim=1)


@BOTH
def test_no_mixing(generation: int) -> None:
    family = grown(generation, mixing=0)
    ws = family.mix_styles(labels(50), draws(50))
    z = draws(50).normal(8).double()
    close(ws, family.styles(z, labels(50))[:, None].expand(-1, 6, -1))


@BOTH
def test_mixing_always(generation: int) -> None:
    """Every crossover from 1 to the last layer, each as often, two styles of one class."""
    family, n = grown(generation, mixing=1), 600
    rng = draws(n)
    z, other = rng.normal(8).double(), rng.normal(8).double()
    ws = family.mix_styles(labels(n), draws(n))
    counts = torch.bincount(crossovers(ws), minlength=7)
    assert counts[0] == 0 and counts[6] == 0
    assert (counts[1:6] - n / 5).abs().max() < 4 * (n / 5) ** 0.5
    close(ws[:, 0], family.styles(z, labels(n)))
    close(ws[:, -1], family.styles(other, labels(n)))


def test_mixing_for_a_share_of_the_images() -> None:
    family = small(mixing=0.9)
    whole = crossovers(family.mix_styles(labels(2000), draws(2000))) == 6
    assert abs(float(whole.double().mean()) - 0.1) < 0.03


def test_growing_networks_mix_within_the_layers_in_use() -> None:
    family = small(generation=1, mixing=1)
    for resolution, layers in ((8, 4), (16, 6)):
        family.progress = Progress(resolution, 1.0)
        found = crossovers(family.mix_styles(labels(300), draws(300)))
        assert set(found.tolist()) == set(range(1, layers))


def test_mixing_does_not_depend_on_the_batch() -> None:
    family = small()
    whole = family.mix_styles(labels(8), draws(8))
    part = family.mix_styles(labels(8)[4:], draws(4, start=4))
    close(part, whole[4:])


# ---- mistakes and sizes ------------------------------------------------------------------------


@BOTH
def test_a_conditional_model_needs_classes(generation: int) -> None:
    config = StyleGANConfig(conditional=True, generation=generation)
    with pytest.raises(UserError, match=r"family\.conditional is true but the data has no classes"):
        config.build(ImageShape(1, 8), 8)


@BOTH
@pytest.mark.parametrize(("channels", "resolution"), [(1, 8), (3, 64)])
def test_sizes_without_classes(generation: int, channels: int, resolution: int) -> None:
    family = small(
        ImageShape(channels, resolution),
        generation=generation,
        start_resolution=resolution,
        conditional=False,
        channels={},
        channel_base=256,
        channel_max=6,
    )
    image = family.sample(normal(2, 8), None, 0.7)
    assert image.shape == (2, channels, resolution, resolution)
    assert family.discriminate(image, None).shape == (2,)
    assert family.num_ws == 2 * (resolution.bit_length() - 2)
