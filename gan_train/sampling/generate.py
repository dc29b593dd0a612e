"""Draws images from seeds, or from styles in a file, and writes them as a grid or one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gan_train.errors import UserError
from gan_train.images.grid import save_grid
from gan_train.images.pixels import to_picture
from gan_train.inference import Generator
from gan_train.sampling.painter import Look, Painter, labels


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
    return _write(images, seeds, out)


def regenerate(generator: Generator, file: Path, look: Look, out: Path) -> Path:
    """Draw one image for each style in `file` (see `read_styles`); returns `out`.

    Images are written as by `generate`, with numbers from 0 in place of seeds.
    """
    _check(out)
    painter = Painter(generator, look)
    ws = painter.truncate(read_styles(file, painter).to(generator.device))
    numbers = range(len(ws))
    return _write(painter.from_styles(ws, numbers), numbers, out)


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


def save_image(image: Tensor, path: Path) -> None:
    """Write uint8 [C, R, R] as a PNG."""
    to_picture(image).save(path, format="PNG")


def _check(out: Path) -> None:
    if out.suffix and out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: allowed: a name ending in .png, or a folder")


def _write(images: Iterable[Tensor], numbers: Sequence[int], out: Path) -> Path:
    if out.suffix:
        return save_grid(torch.stack(list(images)), math.ceil(math.sqrt(len(numbers))), out)
    out.mkdir(parents=True, exist_ok=True)
    for number, image in zip(numbers, images, strict=True):
        save_image(image, out / f"{number}.png")
    return out
