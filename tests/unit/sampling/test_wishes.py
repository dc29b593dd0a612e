"""Images of one pass are those that each would have had alone."""

from __future__ import annotations

import pytest
import torch

from gan_train.errors import UserError
from gan_train.inference import Generator
from gan_train.sampling.painter import Look, Painter
from gan_train.sampling.wishes import Wish, check, draw
from tests.unit.sampling.fakes import NoStyles, linear, pixels, shown


def alone(generator: Generator, wish: Wish) -> torch.Tensor:
    painter = Painter(generator, Look(wish.truncation))
    label = torch.tensor([wish.label]) if generator.conditional else None
    (image,) = painter.from_latents(generator.latents([wish.seed]), label, [wish.seed])
    return image


@pytest.mark.parametrize("conditional", [False, True])
def test_each_image_has_its_own_seed_class_and_truncation(conditional: bool) -> None:
    generator = linear(3, conditional)
    wishes = [
        Wish(seed, label, truncation)
        for seed, label, truncation in [(3, 0, 1.0), (3, 2, 0.5), (7, 1, 0.5), (3, 0, -0.25)]
    ]
    images = draw(generator, wishes)
    for wish, image in zip(wishes, images, strict=True):
        assert torch.equal(image, alone(generator, wish))
    assert len({image.numpy().tobytes() for image in images}) == 4


def test_a_mixed_image_takes_some_layers_of_another_seed() -> None:
    generator = linear()
    mixed, one, other = draw(
        generator,
        [Wish(1, truncation=0.5, other=2, layers=(0, 3)), Wish(1, 0, 0.5), Wish(2, 0, 0.5)],
    )
    expected = shown(one).clone()
    expected[[0, 3]] = shown(other)[[0, 3]]
    assert torch.equal(shown(mixed), expected) and not torch.equal(shown(one), expected)


def test_a_family_without_styles_draws_too() -> None:
    generator = Generator(NoStyles(), "plain")
    images = draw(generator, [Wish(4), Wish(9)])
    assert torch.equal(images, generator.images(generator.latents([4, 9])))
    assert torch.equal(images[0, 0, 0, 0], pixels(0.3 * generator.latents([4])[0, 0]))


def test_what_cannot_be_drawn_is_refused_beforehand() -> None:
    plain = Generator(NoStyles(), "plain")
    for wish in (Wish(1, truncation=0.5), Wish(1, other=2, layers=(0,))):
        with pytest.raises(UserError, match="needs a family with styles"):
            check(plain, wish)
    with pytest.raises(UserError, match="allowed: -2 to 2"):
        check(linear(), Wish(1, truncation=3))
    with pytest.raises(UserError, match="from 0 to 2"):
        check(linear(conditional=True), Wish(1, label=3))
    check(plain, Wish(1, label=3))
