"""Images from a trained generator, written as a grid or one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from gan_train.errors import UserError
from gan_train.grid import save_grid
from gan_train.inference import Generator

_AT_ONCE = 64


def generate(
    folder: Path, seeds: Sequence[int], label: str | None, truncation: float, out: Path
) -> Path:
    """Draw one image per seed with the generator in `folder`; returns `out`.

    `out` ending in .png gets a grid, anything else is a folder of `<seed>.png`. Without `label` a
    conditional generator draws its classes in turn. Raises UserError for an unknown class or a
    truncation outside (0, 1].
    """
    generator = Generator.load(folder, "cuda" if torch.cuda.is_available() else "cpu")
    if not 0 < truncation <= 1:
        raise UserError(f"--truncation {truncation:g}: allowed: above 0, at most 1")
    labels = _labels(generator, label, len(seeds))
    z = generator.latents(seeds)  # [N, z_dim]
    parts = [
        generator.images(
            z[at : at + _AT_ONCE],
            None if labels is None else labels[at : at + _AT_ONCE],
            truncation,
        )
        for at in range(0, len(seeds), _AT_ONCE)
    ]
    images = torch.cat(parts)  # uint8 [N, C, H, W]
    if out.suffix.lower() == ".png":
        return save_grid(images, math.ceil(math.sqrt(len(seeds))), out)
    if out.suffix:
        raise UserError(f"--out {out}: allowed: a name ending in .png, or a folder")
    out.mkdir(parents=True, exist_ok=True)
    for seed, image in zip(seeds, images.permute(0, 2, 3, 1).numpy(), strict=True):
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(out / f"{seed}.png")
    return out


def _labels(generator: Generator, label: str | None, count: int) -> torch.Tensor | None:
    classes = generator.shape.classes
    if not generator.conditional:
        if label is not None:
            raise UserError(f"--class {label}: this generator was trained without classes")
        return None
    if label is None:
        return torch.arange(count) % len(classes)
    if label not in classes:
        raise UserError(f"--class {label}: allowed: {', '.join(classes)}")
    return torch.full((count,), classes.index(label))
