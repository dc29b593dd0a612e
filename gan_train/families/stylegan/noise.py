"""The noise maps that the synthesis networks of both generations add to their features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from gan_train.adversary import Noise
from gan_train.rng import BatchRandom


def noise_maps(noise: Noise, stored: Sequence[Tensor]) -> list[Tensor | None]:
    """One noise map for every layer, given the layers' stored maps [r, r] in order.

    `noise` "const" gives the stored maps, "none" gives None, and random numbers give standard
    normal maps [N, 1, r, r], from one draw for all layers.
    """
    if not isinstance(noise, BatchRandom):
        return [m if noise == "const" else None for m in stored]
    sizes = [m.numel() for m in stored]
    parts = noise.noise(sum(sizes)).to(stored[0]).split(sizes, dim=1)
    return [part.reshape(-1, 1, *m.shape) for part, m in zip(parts, stored, strict=True)]
