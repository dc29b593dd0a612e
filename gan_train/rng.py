"""Random numbers that depend on the seed and on the image's place in the run, and on nothing else.

Every number is a pure function of (seed, stream, position, index). `position` counts images since
the start of training. So one worker or eight, one micro-batch or four draw the same latents, and a
resumed run has no state of a random number generator to restore. The mixing function is
SplitMix64's finaliser (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number
generators"), in wrapping int64 arithmetic, which is the same on every device.
"""

from __future__ import annotations

import functools
import math
import zlib

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15


def _signed(value: int) -> int:
    """The int64 that has the same bits as an unsigned 64-bit number."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_MIX1, _MIX2 = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
_STEP = _signed(_GOLDEN)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros: torch's `>>` on int64 repeats the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def derive(*keys: int | str) -> int:
    """The 63-bit seed of a path of keys: the same on every machine and in every Python version."""
    state = 0
    for key in keys:
        word = zlib.crc32(key.encode()) if isinstance(key, str) else key
        state = (state + _GOLDEN + word * 0xD1342543DE82EF95) & ((1 << 64) - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
        state ^= state >> 31
    return state >> 1


@functools.cache
def _quantiles(device: torch.device) -> Tensor:
    """float32 [65536]: the standard normal's quantiles at the middles of equal probabilities."""
    middles = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    return torch.special.ndtri(middles).float().to(device)


class BatchRandom:
    """Draws random numbers for the samples of one batch or micro-batch, new ones at every call.

    `positions` int64 [N] are the samples' places in the run. Two objects made with the same seed,
    stream and positions give the same numbers in the same order of calls.
    """

    def __init__(self, seed: int, stream: str, positions: Tensor) -> None:
        assert positions.dtype == torch.int64 and positions.ndim == 1
        self._seed, self._stream, self._calls = seed, stream, 0
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def select(self, chosen: slice) -> BatchRandom:
        """A source for the chosen samples alone, whose numbers are independent of this one's."""
        self._calls += 1
        return BatchRandom(self._seed, f"{self._stream}/{self._calls}", self.positions[chosen])

    def repeat(self, times: int) -> BatchRandom:
        """A source for `times` copies of the batch, which all get different numbers."""
        self._calls += 1
        offsets = torch.arange(times, device=self.positions.device) << 48  # beyond any position
        positions = (offsets[:, None] + self.positions).flatten()  # [times * N]
        return BatchRandom(self._seed, f"{self._stream}/{self._calls}", positions)

    def _bits(self, count: int) -> Tensor:
        """[N, count] uniformly distributed int64."""
        key = derive(self._seed, self._stream, self._calls)
        self._calls += 1
        rows = _mix(self.positions * _STEP + key)  # [N]
        columns = torch.arange(1, count + 1, device=rows.device) * _STEP  # [count]
        return _mix(rows[:, None] + columns)

    def uniform(self, *shape: int) -> Tensor:
        """float32 [N, *shape] in [0, 1), on a grid of 2^-24."""
        bits = _shift(self._bits(math.prod(shape)), 40)
        return (bits.to(torch.float32) * 2.0**-24).view(len(self), *shape)

    def normal(self, *shape: int) -> Tensor:
        """float32 [N, *shape] ~ N(0, 1), by Box and Muller (1958) in float64."""
        count = math.prod(shape)
        bits = self._bits(count + count % 2)
        half = bits.shape[1] // 2
        unit = (_shift(bits, 11).to(torch.float64) + 0.5) * 2.0**-53  # (0, 1)
        radius = torch.sqrt(-2.0 * torch.log(unit[:, :half]))
        angle = 2.0 * math.pi * unit[:, half:]
        pair = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        return pair[:, :count].to(torch.float32).reshape(len(self), *shape)

    def noise(self, *shape: int) -> Tensor:
        """float32 [N, *shape] ~ N(0, 1) in 65,536 steps, within +-4.4: for maps of noise.

        This costs a tenth of `normal`: each 64-bit draw gives four numbers, which are looked up
        in a table. So a number has the same bits at any place in a batch.
        """
        count = math.prod(shape)
        words = self._bits((count + 3) // 4).view(torch.int16)[:, :count].to(torch.int32) + 2**15
        return _quantiles(words.device).index_select(0, words.flatten()).view(len(self), *shape)

    def integers(self, high: int) -> Tensor:
        """int64 [N] in [0, high)."""
        return (_shift(self._bits(1)[:, 0], 11).to(torch.float64) * 2.0**-53 * high).long()
