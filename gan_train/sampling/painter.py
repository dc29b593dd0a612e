"""Draws 8-bit images from latents or styles, batch by batch, for all sampling commands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from gan_train.adversary import Noise, StyleSpace
from gan_train.errors import UserError
from gan_train.images.pixels import to_uint8_at
from gan_train.inference import Generator
from gan_train.rng import BatchRandom
from gan_train.sampling.progress import progress_bar

NoiseName = Literal["const", "none", "random"]
NOISES: tuple[NoiseName, ...] = get_args(NoiseName)

_AT_ONCE = 64
_PIXELS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Look:
    """How styles become images.

    `truncation` is psi in [-2, 2] (Karras et al. 2018, arXiv 1812.04948, appendix B): 1 changes
    nothing, 0 gives the mean style, negative values give styles on its other side. It applies to
    the first `cutoff` layers, or to all if that is None. `noise` says which noise maps are added:
    the stored ones ("const" or None), "none", or different ones for every seed ("random").
    """

    truncation: float = 1.0
    cutoff: int | None = None
    noise: NoiseName | None = None


class Painter:
    """Draws images of one generator with one look."""

    def __init__(self, generator: Generator, look: Look) -> None:
        """Raises UserError for a look that this generator cannot have."""
        self.generator, self.look = generator, look
        adversary = generator.adversary
        self._space: StyleSpace | None = adversary if isinstance(adversary, StyleSpace) else None
        side = generator.shape.resolution
        self.at_once = max(1, min(_AT_ONCE, _PIXELS_AT_ONCE // side**2))
        """How many images are drawn in one pass."""
        if not -2 <= look.truncation <= 2:
            raise UserError(f"--truncation {look.truncation:g}: allowed: -2 to 2")
        if look.noise is not None:
            self.space(f"--noise {look.noise}")
        if look.cutoff is not None:
            layers = self.space(f"--cutoff {look.cutoff}").num_ws
            if not 1 <= look.cutoff <= layers:
                raise UserError(f"--cutoff {look.cutoff}: allowed: 1 to {layers}, its layers")
            if look.truncation == 1:
                raise UserError(
                    f"--cutoff {look.cutoff} says how far --truncation reaches: give one"
                )

    @property
    def has_styles(self) -> bool:
        """Whether the family maps latents to styles w."""
        return self._space is not None

    def space(self, wish: str) -> StyleSpace:
        """The generator as one with styles. Raises UserError if its family has none; `wish` is the
        option that needs them, for the message."""
        if self._space is None:
            raise UserError(
                f"{wish} needs a family with styles, such as stylegan; this generator is "
                f"{self.generator.family}"
            )
        return self._space

    @torch.inference_mode()
    def styles(self, z: Tensor, label: Tensor | None, wish: str) -> Tensor:
        """Truncated styles [N, num_ws, w_dim] of latents [N, z_dim] and labels int64 [N]. Before
        the truncation, all layers of an image have the same w. Raises UserError as `space` does."""
        space, device = self.space(wish), self.generator.device
        label = None if label is None else label.to(device)
        w = space.styles(z.to(device), label)  # [N, w_dim]
        return self.truncate(w[:, None].expand(-1, space.num_ws, -1), label)

    @torch.inference_mode()
    def truncate(self, ws: Tensor, label: Tensor | None = None) -> Tensor:
        """Apply the look's truncation to ws [N, num_ws, w_dim], with labels int64 [N] if known."""
        if self.look.truncation == 1:
            return ws
        space = self.space("--truncation")
        return space.truncate(ws, self.look.truncation, self.look.cutoff, label)

    def from_latents(
        self, z: Tensor, label: Tensor | None, places: Sequence[int]
    ) -> Iterator[Tensor]:
        """Yield images uint8 [C, R, R] of latents [N, z_dim] and labels int64 [N].

        `places` has a number for each image, such as its seed, on which random noise depends.
        """
        for part in self._parts(len(z)):
            some = None if label is None else label[part]
            if self.has_styles:
                yield from self.paint(self.styles(z[part], some, "styles"), places[part])
            else:
                yield from self.generator.images(z[part], some, self.look.truncation)

    def from_styles(self, ws: Tensor, places: Sequence[int]) -> Iterator[Tensor]:
        """Yield images uint8 [C, R, R] of ws [N, num_ws, w_dim], without truncation; `places` as in
        `from_latents`."""
        for part in self._parts(len(ws)):
            yield from self.paint(ws[part], places[part])

    @torch.inference_mode()
    def paint(self, ws: Tensor, places: Sequence[int]) -> Tensor:
        """Images uint8 [n, C, R, R] of ws [n, num_ws, w_dim], all at once; `places` as in
        `from_latents`."""
        ws = ws.to(self.generator.device)
        image = self.space("styles").synthesise(ws, self._noise(places))
        return to_uint8_at(image, self.generator.shape.resolution).cpu()

    def _noise(self, places: Sequence[int]) -> Noise:
        if self.look.noise != "random":
            return self.look.noise or "const"
        positions = torch.tensor(list(places), dtype=torch.int64, device=self.generator.device)
        return BatchRandom(0, "generate/noise", positions)

    def _parts(self, count: int) -> Iterator[slice]:
        """Yield the slices of images that are drawn at once, and show progress."""
        with progress_bar("drawing", "img", count) as bar:
            for at in range(0, count, self.at_once):
                yield slice(at, at + self.at_once)
                bar.update(min(self.at_once, count - at))


def class_number(generator: Generator, name: str) -> int:
    """The label of the class with this name. Raises UserError when there is no such class."""
    if not generator.conditional:
        raise UserError(f"--class {name}: this generator was trained without classes")
    classes = generator.shape.classes
    if name not in classes:
        raise UserError(f"--class {name}: allowed: {', '.join(classes)}")
    return classes.index(name)


def labels(generator: Generator, name: str | None, count: int) -> Tensor | None:
    """Labels int64 [count]: the named class for all images, or, without a name, all classes in
    turn. None for a generator without classes. Raises UserError for an unknown class."""
    if name is not None:
        return torch.full((count,), class_number(generator, name))
    if not generator.conditional:
        return None
    return torch.arange(count) % len(generator.shape.classes)
