"""Draws images that several people wish for, each with a look of its own, in one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gan_train.errors import UserError
from gan_train.inference import Generator
from gan_train.sampling.painter import Look, Painter


@dataclass(frozen=True)
class Wish:
    """One image: that of `seed`, in the class number `label`, under `truncation` (see `Look`). With
    `other`, the styles of `layers` are those of this other seed."""

    seed: int
    label: int = 0
    """Without a meaning for a generator without classes."""
    truncation: float = 1.0
    other: int | None = None
    layers: tuple[int, ...] = ()


def check(generator: Generator, wish: Wish) -> None:
    """Raise UserError for a wish that this generator cannot fulfil, whose failure would be that of
    all who wish at the same time."""
    painter = Painter(generator, Look(wish.truncation))
    if wish.truncation != 1:
        painter.space(f"--truncation {wish.truncation:g}")
    if wish.other is not None:
        layers = painter.space("mix").num_ws
        assert all(0 <= layer < layers for layer in wish.layers)
    if generator.conditional and not 0 <= wish.label < len(generator.shape.classes):
        raise UserError(f"classes go from 0 to {len(generator.shape.classes) - 1}")


def draw(generator: Generator, wishes: Sequence[Wish]) -> Tensor:
    """Images uint8 [N, C, R, R], one for each wish: what `generate` and `mix` draw for it, but for
    the last bits of floats, which depend on how many images are drawn at once."""
    painter = Painter(generator, Look())
    seeds = [wish.seed for wish in wishes]
    if not painter.has_styles:
        return generator.images(generator.latents(seeds), _labels(generator, wishes))
    ws = _styles(painter, seeds, wishes)
    mixed = [row for row, wish in enumerate(wishes) if wish.other is not None]
    if mixed:
        pairs = [wishes[row] for row in mixed]
        others = _styles(painter, [wish.other or 0 for wish in pairs], pairs)
        for row, wish, other in zip(mixed, pairs, others, strict=True):
            ws[row, list(wish.layers)] = other[list(wish.layers)]
    return painter.paint(ws, seeds)


def _styles(painter: Painter, seeds: Sequence[int], wishes: Sequence[Wish]) -> Tensor:
    """The styles ws [N, num_ws, w_dim] of the seeds, each in the class and under the truncation of
    its wish."""
    generator = painter.generator
    label = _labels(generator, wishes)
    ws = painter.styles(generator.latents(seeds), label, "styles").clone()
    for truncation in {wish.truncation for wish in wishes}:
        rows = [row for row, wish in enumerate(wishes) if wish.truncation == truncation]
        some = None if label is None else label[rows]
        ws[rows] = Painter(generator, Look(truncation)).truncate(ws[rows], some)
    return ws


def _labels(generator: Generator, wishes: Sequence[Wish]) -> Tensor | None:
    """Labels int64 [N], on the generator's device; None for a generator without classes."""
    if not generator.conditional:
        return None
    return torch.tensor([wish.label for wish in wishes], device=generator.device)
