"""Draws a picture again from what it says of its origin, to compare the two."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_train.data.images import BadImage, open_picture
from gan_train.errors import UserError
from gan_train.images.grid import visible_grid
from gan_train.images.origin import FROM_PICTURES, Origin
from gan_train.images.pixels import from_picture
from gan_train.inference import Generator
from gan_train.sampling.interpolation import Walk, drawn
from gan_train.sampling.mixing import layer_numbers, table
from gan_train.sampling.painter import Look, Painter, class_number, labels
from gan_train.sampling.seeds import seeds
from gan_train.sampling.wishes import Wish, draw

ROUNDING = 1
"""The largest difference of bytes that another order of sums makes: a picture that was drawn beside
others and is drawn alone again may have it."""
_MOST_KEYS = 1000
_MOST_PIXELS = 400_000_000


def difference(generator: Generator, data: bytes, origin: Origin) -> int | None:
    """The largest difference, of bytes, between the PNG file `data` and the picture that is drawn
    again; None if the sizes differ.

    Raises UserError where it cannot be drawn again: from another picture, from a file of styles,
    with other weights, or by what does not fit the file.
    """
    wanted = origin.weights_sha256
    if wanted is None or generator.identity.weights_sha256 != wanted:
        raise UserError(
            "the generator here has other weights than the one that drew it; name the right one "
            "with --model"
        )
    try:
        shown = open_picture(data, generator.shape.channels, max_pixels=_MOST_PIXELS)
    except BadImage as error:
        raise UserError(f"its pixels cannot be read ({error})") from error
    again = _drawn_again(generator, origin, shown.shape[1] * shown.shape[2])
    if again.shape != shown.shape:
        return None
    return int((again.int() - shown.int()).abs().max())


def _drawn_again(generator: Generator, origin: Origin, pixels: int) -> Tensor:
    """The picture uint8 [C, H, W]. `pixels` is the size of the file: what is said of its origin
    must not make the generator draw more than it shows."""
    if origin.command in FROM_PICTURES:
        raise UserError("it was made of another picture, which is not in it")
    if origin.command == "samples":
        raise UserError("it was drawn while the model was trained, by weights that are not kept")
    if origin.seeds is None:
        raise UserError("it was drawn from styles in a file, which are not in it")
    most = max(1, pixels // generator.shape.resolution**2)
    truncation = 1.0 if origin.truncation is None else origin.truncation
    look = Look(truncation, origin.cutoff, origin.noise)
    painter = Painter(generator, look)
    label = origin.classes[0] if origin.classes else None
    if origin.command == "interpolate":
        return _frame(painter, origin)
    first = seeds(origin.seeds, "its seeds", most)
    if origin.command == "mix":
        return _mixture(painter, origin, first, label, most)
    images = list(
        painter.from_latents(generator.latents(first), labels(generator, label, len(first)), first)
    )
    return _arranged(images, origin)


def _arranged(images: list[Tensor], origin: Origin) -> Tensor:
    if not origin.columns:
        return images[0]
    return from_picture(visible_grid(torch.stack(images), min(origin.columns, len(images))))


def _mixture(
    painter: Painter, origin: Origin, rows: list[int], label: str | None, most: int
) -> Tensor:
    generator = painter.generator
    columns = seeds(origin.others or "", "its columns", most)
    if (len(rows) + 1) * (len(columns) + 1) > max(most, 4):
        raise UserError("what it says of its origin is more than it shows")
    layers = origin.layers or "coarse"
    if origin.columns:
        return _arranged(list(table(painter, rows, columns, layers, label)), origin)
    taken = layer_numbers(layers, painter.space("mix").num_ws)
    number = 0 if label is None else class_number(generator, label)
    wish = Wish(rows[0], number, painter.look.truncation, columns[0], tuple(taken))
    return draw(generator, [wish])[0]


def _frame(painter: Painter, origin: Origin) -> Tensor:
    keys = tuple(seeds(origin.seeds or "", "its seeds", _MOST_KEYS))
    frames, frame = origin.frames or 1, origin.frame or 0
    walk = Walk(keys, tuple(origin.classes or ()), origin.space, frames, bool(origin.loop))
    if walk.keys < 2 or not frame < walk.length:
        raise UserError("what it says of its origin is no way from image to image")
    (image,) = drawn(painter, walk, torch.tensor([frame / frames], dtype=torch.float64))
    return image


def in_words(found: int | None) -> str:
    """What `difference` found, as text."""
    if found is None:
        return "no: the picture has another size"
    if found == 0:
        return "identical"
    if found <= ROUNDING:
        return f"the same but for rounding (bytes differ by at most {found})"
    return f"no: bytes differ by up to {found}, so the picture was changed"
