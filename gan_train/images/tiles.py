"""Super-resolution of whole images of any size: tile by tile and without seams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from gan_train.images.pixels import to_float, to_uint8


@dataclass(frozen=True)
class Tile:
    """A part of the result, and what the network must see for it, both in pixels of the input.

    The results of `rows` and `columns` are kept. The network sees `seen_rows` and `seen_columns`,
    which add the overlap on every side, as far as the image goes. Tiles lie side by side, so every
    pixel is kept once.
    """

    rows: slice
    columns: slice
    seen_rows: slice
    seen_columns: slice


def tiles(height: int, width: int, tile: int, overlap: int) -> Iterator[Tile]:
    """The tiles of an image, row by row; each keeps at most `tile` x `tile` pixels."""
    assert height > 0 and width > 0 and tile > 0 and overlap >= 0
    for rows, seen_rows in _spans(height, tile, overlap):
        for columns, seen_columns in _spans(width, tile, overlap):
            yield Tile(rows, columns, seen_rows, seen_columns)


def _spans(size: int, tile: int, overlap: int) -> list[tuple[slice, slice]]:
    """Spans that are kept and seen along one side. They are equal but for a pixel, so that none is
    a sliver."""
    count = -(-size // tile)
    cuts = [size * number // count for number in range(count + 1)]
    return [
        (slice(begin, end), slice(max(0, begin - overlap), min(size, end + overlap)))
        for begin, end in pairwise(cuts)
    ]


@torch.inference_mode()
def upscale_picture(
    upscale: Callable[[Tensor], Tensor],
    picture: Tensor,
    scale: int,
    tile: int = 192,
    overlap: int = 40,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Turn uint8 [C, H, W] into uint8 [C, scale H, scale W], on the same device.

    `upscale` makes float [1, C, scale h, scale w] of float [1, C, h, w], both in about [-1, 1].
    `reach` says how far a pixel of its output looks (40 for SRGAN of the paper's size). Where the
    overlap is no less, the result is that of the whole image at once: the border of a tile is too
    far away to matter, unless it is also the image's. With less, seams may show. `progress` is
    called after every tile, with the numbers of tiles done and of all.
    """
    assert picture.dtype == torch.uint8 and picture.ndim == 3
    channels, height, width = picture.shape
    result = picture.new_empty(channels, scale * height, scale * width)
    parts = list(tiles(height, width, tile, overlap))
    for number, part in enumerate(parts, start=1):
        seen = picture[:, part.seen_rows, part.seen_columns]
        image = upscale(to_float(seen[None]))[0]  # [C, scale h, scale w]
        assert image.shape[1:] == (scale * seen.shape[1], scale * seen.shape[2])
        kept = image[
            :,
            _within(part.rows, part.seen_rows, scale),
            _within(part.columns, part.seen_columns, scale),
        ]
        result[:, _multiply(part.rows, scale), _multiply(part.columns, scale)] = to_uint8(kept)
        if progress is not None:
            progress(number, len(parts))
    return result


def _multiply(span: slice, scale: int) -> slice:
    return slice(span.start * scale, span.stop * scale)


def _within(span: slice, seen: slice, scale: int) -> slice:
    """Where the kept pixels stand in what the network made of the seen ones."""
    return slice((span.start - seen.start) * scale, (span.stop - seen.start) * scale)
