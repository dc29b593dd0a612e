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
    """A part of the result and the part of the input that the network sees for it, in input pixels.

    The result is kept for `rows` and `columns`. The network sees `seen_rows` and `seen_columns`,
    which are larger by the overlap on every side, but end at the image's border. Tiles lie side by
    side, so every pixel is kept once.
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
    """For each tile along one side, the span that is kept and the span that is seen. The kept spans
    differ by at most a pixel, so that none is very narrow."""
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

    `upscale` makes float [1, C, scale h, scale w] from float [1, C, h, w], both in about [-1, 1].
    With an overlap of at least `Upscales.reach` (40 for SRGAN of the paper's size), the result is
    the same as for the whole image at once, because no kept pixel depends on a tile's border unless
    it is the image's border. With less overlap, seams may show. `progress` is called after every
    tile, with the number of tiles done and the number of all tiles.
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
    """The place of the kept pixels within the network's output for the seen pixels."""
    return slice((span.start - seen.start) * scale, (span.stop - seen.start) * scale)
