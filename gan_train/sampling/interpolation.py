"""Draws walks from image to image: through latents z on a sphere, or styles w on a smooth curve.

A walk is given by keys, which are images on the way, and passes through them exactly. In z, frames
between two keys depend on these two alone; in w, also on the key before and the key after.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from gan_train.errors import UserError
from gan_train.images.origin import Origin
from gan_train.inference import Generator
from gan_train.sampling import film
from gan_train.sampling.painter import Look, Painter, class_number
from gan_train.sampling.seeds import text_of


@dataclass(frozen=True)
class Walk:
    """The keys of a walk, the space it goes through, and its number of frames.

    Each key is a seed and, for a conditional generator, a class (by name); the shorter of the two
    lists is repeated. `space` None means w where the family has styles, else z. `frames` is the
    number of frames from one key to the next. With `loop` the walk goes back to the first key.
    """

    seeds: tuple[int, ...]
    classes: tuple[str, ...] = ()
    space: Literal["z", "w"] | None = None
    frames: int = 30
    loop: bool = False

    @property
    def keys(self) -> int:
        """The number of keys."""
        return max(len(self.seeds), len(self.classes))

    @property
    def length(self) -> int:
        """The number of frames. A walk that does not loop ends with its last key."""
        return self.keys * self.frames if self.loop else (self.keys - 1) * self.frames + 1

    def times(self) -> Tensor:
        """float64 [length]: the time of each frame; key k is passed at time k."""
        return torch.arange(self.length, dtype=torch.float64) / self.frames


def interpolate(
    generator: Generator, walk: Walk, look: Look, out: Path, frames_per_second: float
) -> Path:
    """Draw a walk and write it to `out`, a .gif, an .mp4 or a folder of PNGs; returns `out`.

    In z all keys must have one class; in w they may differ. All frames have the same noise. Raises
    UserError for a walk or look that this generator cannot have, and as `film.check` does.
    """
    film.check(out, walk.length, frames_per_second)
    if walk.keys < 2:
        raise UserError("--seeds: name at least two, or one seed and two classes: --class A,B")
    if walk.frames < 1:
        raise UserError(f"--frames {walk.frames}: allowed: 1 or more")
    painter = Painter(generator, look)

    def origin(frame: int) -> Origin:
        return generator.origin(
            "interpolate",
            **asdict(look),
            seeds=text_of(walk.seeds),
            classes=list(walk.classes) or None,
            space=walk.space,
            frames=walk.frames,
            loop=walk.loop,
            frame=frame,
        )

    images = drawn(painter, walk, walk.times())
    return film.write(images, out, frames_per_second, walk.loop, origin)


def drawn(painter: Painter, walk: Walk, times: Tensor) -> Iterator[Tensor]:
    """The images uint8 [C, R, R] at times float64 [T] of a walk; it passes key k at time k."""
    generator, space = painter.generator, walk.space or ("w" if painter.has_styles else "z")
    z = generator.latents(list(islice(cycle(walk.seeds), walk.keys)))  # [keys, z_dim]
    classes = _classes(generator, walk, space)
    places = [0] * len(times)  # the same noise for all
    if space == "w":
        ws = painter.styles(z, classes, "--space w")  # [keys, num_ws, w_dim]
        on_the_way = spline(ws, times, walk.loop)  # [T, num_ws, w_dim]
        return painter.from_styles(on_the_way, places)
    same = None if classes is None else classes[:1].expand(len(times))
    return painter.from_latents(great_circles(z, times, walk.loop), same, places)


def great_circles(keys: Tensor, times: Tensor, loop: bool) -> Tensor:
    """Points [T, D] on great circles from key to key, at times float64 [T] in [0, K], of keys
    [K, D].

    Shoemake 1985, "Animating rotation with quaternion curves"; for latents White 2016 (arXiv
    1609.04468): normal latents lie near a sphere, which a straight line would leave. Between keys
    of different lengths the length changes gradually. Two keys of the same or of opposite
    directions have no single great circle, and are joined by a straight line.
    """
    x = keys.double()
    begin = times.floor().long()
    end = (begin + 1) % len(keys) if loop else (begin + 1).clamp(max=len(keys) - 1)
    t = (times - begin)[:, None]  # [T, 1] in [0, 1)
    a, b = x[begin], x[end]  # [T, D]
    cosine = torch.cosine_similarity(a, b, dim=1)[:, None]
    angle = cosine.clamp(-1, 1).acos()
    straight = angle.sin() < 1e-6
    sine = torch.where(straight, 1.0, angle.sin())
    from_a = torch.where(straight, 1 - t, ((1 - t) * angle).sin() / sine)
    from_b = torch.where(straight, t, (t * angle).sin() / sine)
    return (from_a * a + from_b * b).to(keys.dtype)


def spline(keys: Tensor, times: Tensor, loop: bool) -> Tensor:
    """Points [T, ...] on a curve without corners, at times float64 [T] in [0, K], of keys
    [K, ...].

    The curve is the cubic of Catmull and Rom 1974, "A class of local interpolating splines": at a
    key it has the direction from the key before to the key after. A curve that does not loop is
    straight at both ends; through two keys it is a straight line.
    """
    x = keys.double()
    if loop:
        padded = torch.cat([x[-1:], x, x[:2]])
    else:
        first, last = 2 * x[0] - x[1], 2 * x[-1] - x[-2]
        padded = torch.cat([first[None], x, last[None], last[None]])
    begin = times.floor().long()
    t = times - begin  # [T] in [0, 1)
    weights = (
        (-t + 2 * t**2 - t**3) / 2,
        (2 - 5 * t**2 + 3 * t**3) / 2,
        (t + 4 * t**2 - 3 * t**3) / 2,
        (t**3 - t**2) / 2,
    )
    shape = (-1, *[1] * (keys.ndim - 1))
    parts = [w.view(shape) * padded[begin + i] for i, w in enumerate(weights)]
    return torch.stack(parts).sum(dim=0).to(keys.dtype)


def _classes(generator: Generator, walk: Walk, space: str) -> Tensor | None:
    """The labels int64 [keys], or None for a generator without classes. Raises UserError for
    classes that this walk cannot have."""
    numbers = [class_number(generator, name) for name in walk.classes]
    if not generator.conditional:
        return None
    if not numbers:
        raise UserError(f"--class: name one of {', '.join(generator.shape.classes)}")
    if space == "z" and len(set(numbers)) > 1:
        raise UserError(
            f"--class {','.join(walk.classes)}: from class to class goes in w alone; name one "
            "class, or use a family with styles and --space w"
        )
    return torch.tensor(list(islice(cycle(numbers), walk.keys)))
