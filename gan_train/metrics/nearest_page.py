"""The page that shows samples beside the training images nearest to them.

One HTML document that stands alone: pictures are inside it, and there is no script. All text is
escaped. Pure functions.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from gan_train.metrics.memorisation import NearestReal, memorised
from gan_train.metrics.pairs import over_pairs
from gan_train.metrics.scores import Estimate, number, with_error
from gan_train.text import line

SHOWN = 24
"""How many pairs the page shows."""
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    ".pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(13rem,1fr));gap:1rem}"
    "figure{margin:0}img{width:6rem;image-rendering:pixelated}figcaption{font-size:.8rem}"
)


@dataclass(frozen=True)
class NearestPairs:
    """The samples that lie nearest to training images: places int64 [k] of the samples and of the
    training images in their sequences, and distances float64 [k], ascending; and the test of all
    samples (`memorisation.memorised`). `usual` is the median distance of other real images."""

    samples: Tensor
    training: Tensor
    distances: Tensor
    usual: float
    chance: Estimate
    p: float


def nearest_pairs(real: Tensor, unseen: Tensor, fake: Tensor) -> NearestPairs:
    """The nearest pairs of fake features [m, D] with the first n of real ones [N, D], where unseen
    [n] are the distances of other real images to these."""
    x, y = real.double(), fake.double()
    nearest = NearestReal(x, y, len(unseen))
    over_pairs(x, y, nearest)
    distances, order = nearest.distances.sort()
    chance, p = memorised(distances, unseen)
    order = order[:SHOWN]
    usual = float(unseen.median())
    return NearestPairs(
        order, nearest.places[order], distances[:SHOWN], usual, chance, float(p.value)
    )


def page(title: str, pairs: NearestPairs, samples: Tensor, training: Tensor) -> str:
    """The page of these pairs, with their images uint8 [k, C, H, W]."""
    told = (
        f"A sample is nearer to a training image than another real image is with a chance of "
        f"{with_error(pairs.chance.value, pairs.chance.error)}; .5 is fair. One-sided p-value by "
        f"the test of Mann and Whitney: {number(pairs.p)}. The median distance of other real "
        f"images is {number(pairs.usual)}."
    )
    figures = [
        f'<figure><img src="{_png(sample)}" alt="sample {place}"> '
        f'<img src="{_png(original)}" alt="training image {other}">'
        f"<figcaption>sample {place}, training image {other}: {number(apart)}</figcaption></figure>"
        for sample, original, place, other, apart in zip(
            samples, training, *_lists(pairs), strict=True
        )
    ]
    name = html.escape(line(title))
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f"<title>Nearest pairs of {name}</title><style>{_STYLE}</style></head><body>",
            f"<h1>Nearest pairs of {name}</h1><p>{html.escape(told)}</p>",
            "<p>Left a sample, right the training image whose features are nearest, with their "
            'distance; the nearest pair comes first.</p><div class="pairs">',
            *figures,
            "</div></body></html>\n",
        ]
    )


def _lists(pairs: NearestPairs) -> Sequence[list[float]]:
    return pairs.samples.tolist(), pairs.training.tolist(), pairs.distances.tolist()


def _png(image: Tensor) -> str:
    """An image uint8 [C, H, W] as the address of an inline PNG."""
    assert image.dtype == torch.uint8
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.cpu().contiguous().numpy()).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
