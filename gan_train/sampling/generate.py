"""Draws images from seeds, or from styles in a file, and writes them as a grid or one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gan_train.errors import UserError
from gan_train.files.digests import sha256_of
from gan_train.images.grid import save_grid
from gan_train.images.origin import Origin, encoded
from gan_train.images.pixels import to_picture
from gan_train.inference import Generator
from gan_train.sampling.painter import Look, Painter, labels
from gan_train.sampling.seeds import text_of


def generate(
    generator: Generator, seeds: Sequence[int], label: str | None, look: Look, out: Path
) -> Path:
    """Draw one image per seed; returns `out`.

    If `out` ends in .png, a grid is written there; else `out` is a folder, into which each image is
    written as `<seed>.png`. Without `label` a conditional generator draws its classes in turn.
    Raises UserError for an unknown class, a look that the generator cannot have, or a file name
    with another ending.
    """
    _check(out)
    painter = Painter(generator, look)
    classes = labels(generator, label, len(seeds))
    images = painter.from_latents(generator.latents(seeds), classes, seeds)

    def origin(place: int | None) -> Origin:
        if place is None:
            named = None if label is None else [label]
            columns = grid_columns(len(seeds))
            return drawn_by(painter, seeds=text_of(seeds), classes=named, columns=columns)
        named = None if classes is None else [generator.shape.classes[int(classes[place])]]
        return drawn_by(painter, seeds=str(seeds[place]), classes=named)

    return _write(images, seeds, out, origin)


def drawn_by(painter: Painter, **made_with: Any) -> Origin:
    """The origin of a picture that `generate` makes, with the painter's look."""
    return painter.generator.origin("generate", **asdict(painter.look), **made_with)


def grid_columns(count: int) -> int:
    """The columns of a grid of so many images: about as many as rows."""
    return math.ceil(math.sqrt(count))


def regenerate(generator: Generator, file: Path, look: Look, out: Path) -> Path:
    """Draw one image for each style in `file` (see `read_styles`); returns `out`.

    Images are written as by `generate`, with numbers from 0 in place of seeds.
    """
    _check(out)
    painter = Painter(generator, look)
    ws = painter.truncate(read_styles(file, painter).to(generator.device))
    numbers, digest = range(len(ws)), sha256_of(file)

    def origin(place: int | None) -> Origin:
        columns = grid_columns(len(ws)) if place is None else None
        return drawn_by(painter, styles_sha256=digest, columns=columns, frame=place)

    return _write(painter.from_styles(ws, numbers), numbers, out, origin)


def read_styles(file: Path, painter: Painter) -> Tensor:
    """The styles ws [N, num_ws, w_dim] in a safetensors file. Its tensor `w` has this shape, or is
    [N, w_dim] and serves all layers. Raises UserError for any other file, or for styles of a shape
    that this generator does not take."""
    space = painter.space("--w")
    if not file.is_file():
        raise UserError(f"--w {file}: no such file; `gan-train project` writes one")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise UserError(f"--w {file}: not a safetensors file ({error})") from error
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    w = tensors.get("w", torch.empty(0))
    layers, dims = space.num_ws, space.w_dim
    if w.ndim == 2 and len(w) and w.shape[1] == dims:
        w = w[:, None].expand(-1, layers, -1)
    if w.ndim != 3 or not len(w) or w.shape[1:] != (layers, dims):
        raise UserError(
            f"--w {file} holds {shapes}; this generator needs a tensor `w` of shape [N, {dims}] or "
            f"[N, {layers}, {dims}]: was it projected with another one?"
        )
    return w.float()


def save_image(image: Tensor, path: Path, origin: Origin) -> None:
    """Write uint8 [C, R, R] as a PNG."""
    path.write_bytes(encoded(to_picture(image), origin))


def _check(out: Path) -> None:
    if out.suffix and out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: allowed: a name ending in .png, or a folder")


def _write(
    images: Iterable[Tensor],
    numbers: Sequence[int],
    out: Path,
    origin: Callable[[int | None], Origin],
) -> Path:
    """Write a grid or single images. `origin` is called with an image's place, or None for a
    grid."""
    if out.suffix:
        columns = grid_columns(len(numbers))
        return save_grid(torch.stack(list(images)), columns, out, origin(None))
    out.mkdir(parents=True, exist_ok=True)
    for place, (number, image) in enumerate(zip(numbers, images, strict=True)):
        save_image(image, out / f"{number}.png", origin(place))
    return out
