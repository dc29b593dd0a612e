"""A generator as a program of tensors alone, traced by `torch.export`, which other libraries run.

A program has no random numbers: the noise of families with styles is the stored one. All inputs
have a row for each image, and any number of rows. Latents are `z` float32 [n, z_dim]; beside them
stand `label` int64 [n] where there are classes, and `truncation` float32 [n] where there are
styles. Other families take a `picture` float32 [n, C, h, w]. The output is `image`, float32
[n, C, H, W].

Pictures and images are in [-1, 1]; the byte of a value is floor(127.5 value + 128), at most 255.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from gan_train.adversary import (
    DOMAINS,
    Adversary,
    Domain,
    Generates,
    StyleSpace,
    Translates,
    Upscales,
)
from gan_train.images.pixels import at_resolution
from gan_train.inference import Generator
from gan_train.rng import BatchRandom
from gan_train.training.moving_average import image_maker

OUTPUT = "image"
TRUNCATED = 0.7
"""The truncation of every second image that a program is checked with, where there is one."""

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Program:
    """A generator, or one direction of a translation, with its inputs."""

    generator: Generator
    to: Domain | None = None
    """The domain that a translation makes; None for other tasks."""

    def inputs(self, first: int, count: int) -> Inputs:
        """Inputs of the images number `first` and on, the same on every machine: latents of these
        seeds, classes in turn, truncation 1 and `TRUNCATED` in turn; or pictures of noise, whose
        sides are those of the training images as the network takes them."""
        numbers = torch.arange(first, first + count)
        generator, adversary = self.generator, self.generator.adversary
        if not isinstance(adversary, Generates):
            side = generator.shape.resolution
            side = side // adversary.scale if isinstance(adversary, Upscales) else side
            random = BatchRandom(0, "export/pictures", numbers)
            return {"picture": random.uniform(generator.shape.channels, side, side) * 2 - 1}
        found = {"z": generator.latents(numbers.tolist())}
        if generator.conditional:
            # the second of two neighbours has the same class, so that both truncations meet all
            found["label"] = numbers // 2 % len(generator.shape.classes)
        if isinstance(adversary, StyleSpace):
            found["truncation"] = torch.where(numbers % 2 == 0, 1.0, TRUNCATED)
        return found

    @torch.inference_mode()
    def answer(self, inputs: Inputs) -> Tensor:
        """What this program should answer, by the library's own way: float32 [n, C, H, W]."""
        adversary = self.generator.adversary
        if isinstance(adversary, Upscales):
            image = adversary.upscale(inputs["picture"])
        elif isinstance(adversary, Translates):
            image = adversary.translate(inputs["picture"], self.to or "B")
        else:
            assert isinstance(adversary, Generates)
            image = torch.cat([*_by_truncation(adversary, inputs)])
            order = torch.cat([rows for _, rows in _alike(inputs)])
            image = at_resolution(image, self.generator.shape.resolution)[order.argsort()]
        return image.float().clamp(-1, 1)

    def traced(self) -> ExportedProgram:
        """The program as a graph with its weights, for any number of images, and for pictures of
        any size where the network takes them."""
        module, inputs = self._module(), self.inputs(0, 2)
        with torch.no_grad():
            module(**inputs)  # filters that are made once must not be made while it is traced
            return torch.export.export(
                module, (), inputs, dynamic_shapes={name: _free(x) for name, x in inputs.items()}
            )

    def _module(self) -> nn.Module:
        generator = self.generator
        adversary = image_maker(generator.adversary)
        if isinstance(adversary, Upscales):
            return _Upscaling(adversary)
        if isinstance(adversary, Translates):
            return _Translation(adversary, self.to or "B")
        if isinstance(adversary, StyleSpace):
            return _Styled(adversary, generator)
        return _Plain(adversary, generator)


def programs(generator: Generator) -> list[Program]:
    """The programs of a generator: one, or one for each direction of a translation."""
    if generator.task == "translate":
        return [Program(generator, to) for to in DOMAINS]
    return [Program(generator)]


def _free(x: Tensor) -> dict[int, Any]:
    """The sides of an input that may have any length."""
    return {0: Dim.DYNAMIC} | ({2: Dim.AUTO, 3: Dim.AUTO} if x.ndim == 4 else {})


def _alike(inputs: Inputs) -> Iterator[tuple[float, Tensor]]:
    """Each truncation that occurs, with the rows [k] that have it."""
    truncation = inputs.get("truncation", torch.ones(inputs["z"].shape[0]))
    for value in truncation.unique():
        yield float(value), (truncation == value).nonzero()[:, 0]


def _by_truncation(adversary: Generates, inputs: Inputs) -> Iterator[Tensor]:
    """Images of the rows of `_alike`: the library draws with one truncation at a time."""
    label = inputs.get("label")
    for value, rows in _alike(inputs):
        yield adversary.sample(inputs["z"][rows], None if label is None else label[rows], value)


class _Plain(nn.Module):
    def __init__(self, adversary: Adversary, generator: Generator) -> None:
        super().__init__()
        self.adversary, self.resolution = adversary, generator.shape.resolution

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        assert isinstance(self.adversary, Generates)
        image = self.adversary.sample(z, label)
        return at_resolution(image, self.resolution).float().clamp(-1, 1)


class _Styled(nn.Module):
    """Draws each style to the mean of its class, or of all, by the truncation of its own row."""

    means: Tensor

    @torch.no_grad()
    def __init__(self, adversary: Adversary, generator: Generator) -> None:
        super().__init__()
        self.adversary, self.resolution = adversary, generator.shape.resolution
        assert isinstance(adversary, StyleSpace)
        classes = len(generator.shape.classes) if generator.conditional else 1
        label = torch.arange(classes) if generator.conditional else None
        # with psi 0, nothing but the mean is left
        means = adversary.truncate(torch.zeros(classes, 1, adversary.w_dim), 0.0, label=label)
        self.register_buffer("means", means)  # [classes, 1, w_dim]

    def forward(self, z: Tensor, truncation: Tensor, label: Tensor | None = None) -> Tensor:
        space = self.adversary
        assert isinstance(space, StyleSpace)
        ws = space.styles(z, label)[:, None].expand(-1, space.num_ws, -1)
        mean = self.means[:1] if label is None else self.means[label]  # [1 or n, 1, w_dim]
        ws = torch.lerp(mean, ws, truncation[:, None, None])
        image = space.synthesise(ws, "const")
        return at_resolution(image, self.resolution).float().clamp(-1, 1)


class _Upscaling(nn.Module):
    def __init__(self, adversary: Adversary) -> None:
        super().__init__()
        self.adversary = adversary

    def forward(self, picture: Tensor) -> Tensor:
        assert isinstance(self.adversary, Upscales)
        return self.adversary.upscale(picture).float().clamp(-1, 1)


class _Translation(nn.Module):
    def __init__(self, adversary: Adversary, to: Domain) -> None:
        super().__init__()
        self.adversary, self.to_domain = adversary, to

    def forward(self, picture: Tensor) -> Tensor:
        assert isinstance(self.adversary, Translates)
        return self.adversary.translate(picture, self.to_domain).float().clamp(-1, 1)
