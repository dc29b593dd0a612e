"""Style mixing: images with the coarse layers of one image and the fine layers of another.

Karras et al. 2018 (arXiv 1812.04948), section 3.1 and figure 3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from gan_train.errors import UserError
from gan_train.images.grid import save_grid
from gan_train.inference import Generator
from gan_train.sampling.painter import Look, Painter, labels

_COARSE, _MIDDLE = 4, 8
"""Coarse layers end before the first number, middle ones before the second. A resolution has two
layers: 4 and 8 pixels are coarse, 16 and 32 middle, the rest is fine."""


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

    The images of the seeds `columns` stand on top, those of `rows` at the left. A cell has the
    styles of its row, but in `layers` (see `layer_numbers`) those of its column. Without `label`
    a conditional generator takes its classes in turn along either side. Raises UserError for a
    family without styles, unknown layers or classes, and a name that does not end in .png.
    """
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: allowed: a name ending in .png")
    painter = Painter(generator, look)
    taken = layer_numbers(layers, painter.space("mix").num_ws)
    left, top = (
        painter.styles(generator.latents(seeds), labels(generator, label, len(seeds)), "mix")
        for seeds in (rows, columns)
    )  # [rows, num_ws, w_dim], [columns, num_ws, w_dim]
    cells = left[:, None].repeat(1, len(columns), 1, 1)  # [rows, columns, num_ws, w_dim]
    cells[:, :, taken] = top[None, :, taken]
    table = torch.cat([left[:, None], cells], dim=1).flatten(0, 1)
    everything = torch.cat([top, table])
    # new noise depends on the seed, and a cell has the noise of its row
    places = [*columns, *(seed for seed in rows for _ in range(len(columns) + 1))]
    images = list(painter.from_styles(everything, places))
    corner = torch.zeros_like(images[0])
    return save_grid(torch.stack([corner, *images]), len(columns) + 1, out)


def layer_numbers(text: str, count: int) -> list[int]:
    """The layers that a text such as `0-3`, `0,2,5`, `coarse`, `middle` or `fine` names, of a
    generator with `count` layers.

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
            # one beyond the last layer is enough to be refused
            found |= set(range(int(first), min(int(last or first), count) + 1)) or {count}
    if not found or max(found) >= count:
        names = ", ".join(name for name, numbers in named.items() if numbers)
        raise UserError(
            f"--layers {text}: allowed: {names}, or numbers and ranges from 0 to {count - 1}, such "
            "as 0-3 or 0,2"
        )
    return sorted(found)
