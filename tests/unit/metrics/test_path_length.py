"""Path lengths against closed forms: linear generators, linear embeddings, float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gan_train.adversary import Adversary, ImageShape, Noise, StyleSpace
from gan_train.errors import UserError
from gan_train.metrics.path_length import (
    EPSILON,
    PathLengths,
    at_resolution,
    path_lengths,
    slerp,
    trimmed_mean,
)
from gan_train.metrics.real import RankShare
from gan_train.rng import BatchRandom

CPU = torch.device("cpu")
SEED, SIDE = 7, 4
PIXELS = SIDE * SIDE


def _random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class _Linear:
    """The perceptual distance of pictures under a matrix [C H W, D]; none: of the pixels."""

    name, suffix, resize, weights_sha256 = "linear", "_linear", "none", "ab" * 32

    def __init__(self, matrix: Tensor | None = None) -> None:
        self.matrix = matrix

    def embed(self, images: Tensor) -> Tensor:
        flat = images.flatten(1)
        return flat if self.matrix is None else flat @ self.matrix


class _Plain(Adversary):
    """Images are rotated latents; a class adds much to them."""

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.shape = ImageShape(1, SIDE, tuple("ABCDEF"[:classes]))
        self.z_dim, self.conditional = PIXELS, classes > 0
        self.rotation = nn.Parameter(torch.linalg.qr(_random(PIXELS, PIXELS))[0])
        self.labels: list[int] = []
        self.drawn = 0

    def sample(self, z: Tensor, label: Tensor | None, truncation: float = 1.0) -> Tensor:
        assert truncation == 1 and z.dtype == self.rotation.dtype
        images = (z @ self.rotation).view(-1, 1, SIDE, SIDE)
        self.drawn += len(z)
        if label is not None:
            self.labels += label.tolist()
            images = images + 1000 * label[:, None, None, None]
        return images


class _Styled(_Plain):
    """w = z A; each pixel is the mean of its styles to the power `power`, plus noise."""

    w_dim, num_ws = PIXELS, 3

    def __init__(self, power: int = 1, classes: int = 0) -> None:
        super().__init__(classes)
        self.power = power
        self.map = nn.Parameter(_random(PIXELS, PIXELS, seed=1) / 4)

    def styles(self, z: Tensor, label: Tensor | None) -> Tensor:
        w = z @ self.map
        if label is not None:
            self.labels += label.tolist()
            w = w + 1000 * label[:, None]
        return w

    def truncate(
        self, ws: Tensor, psi: float, cutoff: int | None = None, label: Tensor | None = None
    ) -> Tensor:
        raise AssertionError("path lengths are measured without truncation")

    def synthesise(self, ws: Tensor, noise: Noise) -> Tensor:
        assert ws.shape[1:] == (self.num_ws, self.w_dim) and isinstance(noise, BatchRandom)
        pixels = ws.mean(1).pow(self.power).view(-1, 1, SIDE, SIDE)
        return pixels + 50 * noise.normal(1, SIDE, SIDE)


def _meter(
    adversary: Adversary,
    perceptual: Any = None,
    counts: tuple[int, ...] = (),
    batch: int = 10,
    count: int = 50,
    kinds: tuple[Any, ...] = ("z_full",),
) -> PathLengths:
    share = RankShare(0, 1, CPU, batch)
    counted = torch.tensor(counts, dtype=torch.int64)
    return PathLengths(kinds, count, perceptual or _Linear(), adversary, counted, SEED, share)


def _measured(meter: PathLengths) -> dict[str, float]:
    return {name: found.value for name, found in meter.measure().items()}


def _latents(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two latents and a place on the way for each path, as the docstring of the module says."""
    random = BatchRandom(SEED, "path_length", torch.arange(count))
    first, second = random.normal(PIXELS).double(), random.normal(PIXELS).double()
    return first, second, random.uniform().double()


def _trimmed(values: Tensor) -> float:
    """By NumPy, whose names for the two rules are these."""
    array = values.numpy()
    low = np.percentile(array, 1, method="lower")
    high = np.percentile(array, 99, method="higher")
    return float(array[(array >= low) & (array <= high)].mean())


# ---- known lengths -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["w_end", "w_full"])
def test_linear_in_w(kind: str) -> None:
    """|(w1 - w0) M|^2, wherever the step is; the noise, which is large, cancels."""
    adversary, matrix = _Styled(), _random(PIXELS, 40, seed=2)
    assert isinstance(adversary, StyleSpace)
    meter = _meter(adversary, _Linear(matrix), count=300, kinds=(kind,))
    first, second, _ = _latents(300)
    expected = ((second - first) @ adversary.map.detach() @ matrix).square().sum(1)
    assert _measured(meter) == {f"ppl_{kind}_linear": pytest.approx(_trimmed(expected), rel=1e-8)}


def test_the_step_is_at_the_end_or_anywhere() -> None:
    """Squares have the derivative 2 w (w1 - w0), which depends on the place."""
    adversary = _Styled(power=2)
    meter = _meter(adversary, count=300, kinds=("w_end", "w_full"))
    first, second, t = _latents(300)
    w0, w1 = first @ adversary.map.detach(), second @ adversary.map.detach()
    found = _measured(meter)
    for kind, place in (("w_end", torch.zeros_like(t)), ("w_full", t)):
        middle = torch.lerp(
            w0, w1, (place + EPSILON / 2)[:, None]
        )  # where the slope is the chord's
        expected = (2 * middle * (w1 - w0)).square().sum(1)
        assert found[f"ppl_{kind}_linear"] == pytest.approx(_trimmed(expected), rel=1e-8)
    assert t.min() < 0.05 and t.max() > 0.95


@pytest.mark.parametrize("kind", ["z_end", "z_full"])
def test_rotated_in_z(kind: str) -> None:
    """A rotation keeps lengths: the chord of EPSILON times the angle, on a sphere of radius 4."""
    meter = _meter(_Plain(), count=300, kinds=(kind,))
    first, second, _ = _latents(300)
    angle = torch.nn.functional.cosine_similarity(first, second).acos()
    expected = PIXELS * (2 * (EPSILON * angle / 2).sin() / EPSILON).square()
    assert _measured(meter) == {f"ppl_{kind}_linear": pytest.approx(_trimmed(expected), rel=1e-7)}


def test_z_goes_through_the_styles_where_there_are_some() -> None:
    adversary = _Styled()
    found = _measured(_meter(adversary, count=200, kinds=("z_end",)))
    first, second, _ = _latents(200)
    zero = torch.zeros(200, dtype=torch.float64)
    step = slerp(first, second, zero + EPSILON) - slerp(first, second, zero)
    expected = (step @ adversary.map.detach() / EPSILON).square().sum(1)
    assert found == {"ppl_z_end_linear": pytest.approx(_trimmed(expected), rel=1e-8)}
    assert adversary.drawn == 0  # `sample` would add noise of its own


def test_both_ends_have_one_class_as_frequent_as_in_the_data() -> None:
    """A class moves all pixels by 1000: another one at the other end would show."""
    for adversary, kind, calls in ((_Plain(3), "z_end", 2), (_Styled(classes=3), "w_end", 2)):
        counts = (1, 0, 3)
        meter = _meter(adversary, counts=counts, count=400, kinds=(kind,))
        (value,) = _measured(meter).values()
        assert value < 1000
        drawn = torch.bincount(torch.tensor(adversary.labels), minlength=3)
        assert drawn.sum() == calls * 400 and drawn[1] == 0
        assert 0.18 < drawn[0] / drawn.sum() < 0.32  # 0.25 within three standard errors


def test_a_smaller_generator_and_a_larger_picture() -> None:
    grown = torch.arange(4.0).view(1, 1, 2, 2)
    assert at_resolution(grown, 8)[0, 0, :, 0].tolist() == [0, 0, 0, 0, 2, 2, 2, 2]
    large = _random(1, 3, 1024, 1024)
    expected = large.view(1, 3, 256, 4, 256, 4).mean((3, 5))
    torch.testing.assert_close(at_resolution(large, 1024), expected)
    half = _random(1, 3, 512, 512)  # a level of a 1024 generator
    torch.testing.assert_close(
        at_resolution(half, 1024), half.view(1, 3, 256, 2, 256, 2).mean((3, 5))
    )
    assert at_resolution(large[..., :256, :256], 256).shape == (1, 3, 256, 256)


def test_lengths_are_per_path_and_squared() -> None:
    speeds = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def way(t: Tensor) -> Tensor:
        return (speeds * t)[:, None, None, None].expand(-1, 1, 2, 2)

    found = path_lengths(_Linear(), way, torch.tensor([0.0, 0.3, 0.9], dtype=torch.float64))
    torch.testing.assert_close(found, 4 * speeds.square(), rtol=1e-9, atol=0)


# ---- interpolation and trimming ----------------------------------------------------------------


def test_slerp_keeps_length_and_speed() -> None:
    a, b = _random(6, 9, seed=3), 5 * _random(6, 9, seed=4)
    steps = [slerp(a, b, torch.full((6,), t / 10, dtype=torch.float64)) for t in range(11)]
    for point in steps:
        torch.testing.assert_close(point.norm(dim=1), torch.full((6,), 3.0, dtype=torch.float64))
    unit = [x / x.norm(dim=1, keepdim=True) for x in (a, b)]
    torch.testing.assert_close(steps[0], 3 * unit[0])
    torch.testing.assert_close(steps[10], 3 * unit[1])
    middle = unit[0] + unit[1]
    torch.testing.assert_close(steps[5], 3 * middle / middle.norm(dim=1, keepdim=True))
    chords = torch.stack([(y - x).norm(dim=1) for x, y in pairwise(steps)])
    torch.testing.assert_close(chords, chords[:1].expand(10, -1))


def test_slerp_of_equal_directions_stays() -> None:
    a = _random(2, 5)
    half = torch.full((2,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(slerp(a, 2 * a, half), slerp(a, 2 * a, 0 * half))


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 102, 150, 201, 1901, 2000])
def test_trimming_is_as_numpy_does_it(count: int) -> None:
    values = _random(count, seed=count).exp()
    assert trimmed_mean(values).value == pytest.approx(_trimmed(values), rel=1e-12)


def test_outliers_are_dropped_and_faults_are_not() -> None:
    values = torch.ones(1000, dtype=torch.float64)
    values[3], values[500] = 1e9, 0
    assert trimmed_mean(values).value == 1
    for fault in (math.nan, math.inf):
        values[7] = fault
        assert math.isnan(trimmed_mean(values).value)


# ---- what must change nothing, and what is refused ---------------------------------------------


@pytest.mark.parametrize("make", [_Plain, _Styled])
def test_batches_change_nothing(make: Callable[[], _Plain]) -> None:
    kinds = ("z_full",) if make is _Plain else ("w_full", "z_end")
    one, some, all_ = (
        _measured(_meter(make(), batch=batch, count=70, kinds=kinds)) for batch in (1, 10, 500)
    )
    assert one == pytest.approx(some, rel=1e-9) and one == pytest.approx(all_, rel=1e-9)


def test_ranks_cut_their_share_as_one_alone_would() -> None:
    """Batches of the same paths round alike, so the number of ranks changes no bit."""
    meter = _meter(_Plain(), batch=30)

    def cuts(world_size: int) -> list[list[int]]:
        found: list[list[int]] = []
        for rank in range(world_size):
            meter._share = RankShare(rank, world_size, CPU, 30)
            found += [part.tolist() for part in meter._positions(150)]
        return sorted(found)

    one = cuts(1)
    assert [place for part in one for place in part] == list(range(150))
    assert max(map(len, one)) == 15
    assert all(cuts(world_size) == one for world_size in (2, 3, 8))


def test_more_paths_begin_with_the_same() -> None:
    few, many = (_meter(_Plain(), count=n)._lengths("z_full") for n in (20, 40))
    torch.testing.assert_close(few, many[:20], rtol=1e-9, atol=0)


def test_w_is_refused_where_there_is_none() -> None:
    message = r"evaluate\.path_lengths: w_end, w_full .* _Plain does not have; allowed: z_end, z_f"
    with pytest.raises(UserError, match=message):
        _meter(_Plain(), kinds=("w_end", "z_end", "w_full"))


def test_gpu_arithmetic_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.cudnn.allow_tf32

    class Watching(_Linear):
        def embed(self, images: Tensor) -> Tensor:
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
            return super().embed(images)

    _meter(_Plain(), Watching()).measure()
    assert before and torch.backends.cudnn.allow_tf32


def test_float32_is_near_float64() -> None:
    """Though the pictures, and the noise that is ten times as large, differ in the fourth digit."""
    (exact,), (rounded,) = (
        _measured(_meter(adversary, _Linear(), count=50, kinds=("w_full",))).values()
        for adversary in (_Styled(), _Styled().float())
    )
    assert rounded == pytest.approx(exact, rel=2e-3) and rounded != exact
