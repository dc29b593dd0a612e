"""Random numbers are a function of (seed, stream, position, call)."""

from __future__ import annotations

import math

import torch

from gan_train.rng import BatchRandom, derive


def test_each_position_draws_the_same_wherever_it_stands() -> None:
    whole = BatchRandom(7, "D", torch.arange(100, 116))
    part = BatchRandom(7, "D", torch.arange(108, 112))
    for _ in range(2):  # the second call has a sub-stream of its own
        assert torch.equal(whole.normal(3, 5)[8:12], part.normal(3, 5))
        assert torch.equal(whole.uniform()[8:12], part.uniform())
        assert torch.equal(whole.integers(10)[8:12], part.integers(10))


def test_seed_stream_and_call_all_matter() -> None:
    position = torch.arange(8)
    draw = BatchRandom(1, "G", position)
    first, second = draw.normal(4), draw.normal(4)
    assert not torch.equal(first, second)
    assert not torch.equal(first, BatchRandom(2, "G", position).normal(4))
    assert not torch.equal(first, BatchRandom(1, "D", position).normal(4))


def test_moments_and_independence() -> None:
    draw = BatchRandom(3, "x", torch.arange(50_000))
    x, u, k = draw.normal(8).double(), draw.uniform(8), draw.integers(10)
    n = x.numel()
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((x**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 4 / math.sqrt(12 * n)
    counts = torch.bincount(k, minlength=10).double()
    assert ((counts - 5000) ** 2 / 5000).sum() < 30  # chi-square, 9 degrees of freedom, p < .0005
    correlation = torch.corrcoef(x.T).fill_diagonal_(0).abs().max()
    assert correlation < 5 / math.sqrt(50_000)
    assert abs((x[1:] * x[:-1]).mean()) < 4 / math.sqrt(n)  # neighbours in position


def test_derive_is_stable() -> None:
    """Recorded values: a change would make old runs impossible to resume."""
    assert derive(0, "weights") == 7_291_546_120_935_511_424
    assert BatchRandom(0, "generate", torch.tensor([0, 1])).integers(1000).tolist() == [923, 122]
