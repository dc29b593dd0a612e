"""Style mixing: images with the coarse layers of one image and the fine layers of another.

Karras et al. 2018 (arXiv 1812.04948), section 3.1 and figure 3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from gan_train.errors import UserError
from gan_train.images.grid import save_grid
from gan_train.inference import Generator
from gan_train.sampling.painter import Look, Painter, labels
from gan_train.sampling.seeds import text_of

_COARSE, _MIDDLE = 4, 8
"""The first middle layer and the first fine layer. A resolution has two layers, so those of 4 and 8
pixels are coarse, those of 16 and 32 middle, and all others fine."""


def mix(
    generator: Generator,
    rows: Sequence[int],
    columns: Sequence[int],
    layers: str,
    label: str | None,
    look: Look,
    out: Path,
) -> Path:
    """Write a table of images as a PNG; returns `out`.

    The images of the seeds `columns` are at the top, those of the seeds `rows` at the left. A cell
    takes the styles of its row, but in `layers` (see `layer_numbers`) the styles of its column.
    Without `label` a conditional generator takes its classes in turn along both sides. Raises
    UserError for a family without styles, unknown layers or classes, and a name that does not end
    in .png.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: allowed: a name ending in .png")
    painter = Painter(generator, look)
    origin = generator.origin(
        "mix",
        **asdict(look),
        seeds=text_of(rows),
        others=text_of(columns),
        layers=layers,
        classes=None if label is None else [label],
        columns=len(columns) + 1,
    )
    images = table(painter, rows, columns, layers, label)
    return save_grid(images, len(columns) + 1, out, origin)


def table(
    painter: Painter,
    rows: Sequence[int],
    columns: Sequence[int],
    layers: str,
    label: str | None,
) -> Tensor:
    """The images uint8 [N, C, R, R] of a table, row by row; the first one is black."""
    generator = painter.generator
    taken = layer_numbers(layers, painter.space("mix").num_ws)
    left, top = (
        painter.styles(generator.latents(seeds), labels(generator, label, len(seeds)), "mix")
        for seeds in (rows, columns)
    )  # [rows, num_ws, w_dim], [columns, num_ws, w_dim]
    cells = left[:, None].repeat(1, len(columns), 1, 1)  # [rows, columns, num_ws, w_dim]
    cells[:, :, taken] = top[None, :, taken]
    beside = torch.cat([left[:, None], cells], dim=1).flatten(0, 1)
    everything = torch.cat([top, beside])
    # random noise depends on a seed: a cell has the noise of its row's seed
    places = [*columns, *(seed for seed in rows for _ in range(len(columns) + 1))]
    images = list(painter.from_styles(everything, places))
    corner = torch.zeros_like(images[0])
    return torch.stack([corner, *images])


def layer_numbers(text: str, count: int) -> list[int]:
    """The numbers of the layers that a text names (`0-3`, `0,2,5`, `coarse`, `middle`, `fine`), in
    a generator with `count` layers.

    Raises UserError for any other text, and for layers that this generator does not have.
    """
    named = {
        "coarse": range(min(_COARSE, count)),
        "middle": range(_COARSE, min(_MIDDLE, count)),
        "fine": range(_MIDDLE, count),
    }
    found = set(named.get(text, ()))
    if re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text, re.ASCII):
        for part in text.split(","):
            first, _, last = part.partition("-")
            # a range is cut after layer `count`, which does not exist, so it is still refused
            found |= set(range(int(first), min(int(last or first), count) + 1)) or {count}
    if not found or max(found) >= count:
        names = ", ".join(name for name, numbers in named.items() if numbers)
        raise UserError(
            f"--layers {text}: allowed: {names}, or numbers and ranges from 0 to {count - 1}, such "
            "as 0-3 or 0,2"
        )
    return sorted(found)
