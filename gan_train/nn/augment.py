"""Adaptive discriminator augmentation: Karras et al. 2020, arXiv 2006.06676.

Reals and fakes pass through random transformations, each with probability p, before D sees them
(section 2, appendix B); p follows how far D overfits (section 3). This file holds pure functions of
images, random numbers and p. The family keeps p as a buffer and decides when it changes.

The transformations, in order, come in three groups:

- "blit": horizontal flip, turns by 90 degrees, translation by whole pixels. They move pixels and
  leave the values alone.
- "geometry": scaling, rotation, anisotropic scaling, rotation, translation. They are combined into
  one affine map and carried out by one resampling: upsampling by 2 with the orthogonal low-pass
  filter of the sym6 wavelet, bilinear sampling of the result, downsampling by 2 with the same
  filter mirrored. Upsampling and then downsampling gives the image back.
- "colour": brightness, contrast, luma flip, hue and saturation, combined into one affine map of the
  colours. Hue and saturation do not change grey images.

Beyond its borders an image is continued by mirror images without end, so that no transformed image
shows a border. No tensor's size depends on the numbers drawn, and an image's result depends on its
own draws alone.

The transformations are linear in the image, so they are differentiable to every order. The result
is not clamped: brightness and contrast may leave [-1, 1].

Resampling takes most of the time: it has two matrix products with band matrices, 26 R^3
multiply-adds a channel at resolution R, and 4 R^2 bilinear samples from a plane of 16 R^2. On one
core, an RGB image takes 0.2 ms at 32x32 and 0.7 ms at 64x64; with the gradient 0.45 and 1.9 ms. On
a CPU, a group that no image of the batch draws is skipped. On a GPU it is not: the program would
have to wait for the device to know that.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_train.rng import BatchRandom

Group = Literal["blit", "geometry", "colour"]
GROUPS: tuple[Group, ...] = ("blit", "geometry", "colour")

_TRANSFORMATIONS = (
    *("flip", "turn", "shift"),
    *("scale", "pre_rotate", "stretch", "post_rotate", "move"),
    *("brightness", "contrast", "luma_flip", "hue", "saturation"),
)
_ROTATIONS = ("pre_rotate", "post_rotate")
"""The probability that at least one of these two rotations happens is p."""

_SYM6 = (
    0.015404109327044824,
    0.0034907120842221626,
    -0.11799011114852002,
    -0.04831174258569806,
    0.49105594192797375,
    0.787641141028651,
    0.3379294217281658,
    -0.07263752278637658,
    -0.02106029251237085,
    0.04472490177078139,
    0.0017677118642540077,
    -0.00780070832503238,
)
"""The low-pass filter of the least asymmetric wavelet with six vanishing moments: Daubechies 1992,
"Ten Lectures on Wavelets", section 8.1.1. It is orthonormal to its shifts by two and sums to
sqrt 2."""

_DELAY = 5
"""The filter's delay in samples: pixel x lies at sample 2 x + 5 of the upsampled image. The exact
phase delay falls from 5.10 for smooth images to 4.83 for the finest detail; with 5, letters and
drawings that are resampled to a quarter turn come closest to the exact turn."""


def augment(
    images: Tensor, p: Tensor | float, rng: BatchRandom, groups: tuple[Group, ...] = GROUPS
) -> Tensor:
    """Transform each of the images [N, C, R, R], about [-1, 1], C 1 or 3, at random; same type.

    Every transformation of `groups` is applied with probability `p`, independently to each image.
    The numbers that an image draws do not depend on p, on `groups` or on the rest of the batch.
    p = 0 gives the images unchanged; p above 1 counts as 1 (see `next_strength`). p gets no
    gradient.
    """
    n, channels, height, width = images.shape
    assert channels in (1, 3) and height == width >= 2 and n == len(rng), tuple(images.shape)
    draws = _Draws(rng, p)
    dtype = images.dtype if images.dtype == torch.float64 else torch.float32
    with torch.autocast(images.device.type, enabled=False):  # the filters need float32
        x = images.to(dtype)
        shift = torch.zeros(n, 2, dtype=torch.int64, device=images.device)
        if "blit" in groups:
            x, shift = _blit(x, draws)
        if "geometry" in groups:
            x = _geometry(x, shift, draws)
        elif "blit" in groups:
            x = translate(x, shift)
        if "colour" in groups:
            x = _colour(x, draws)
        return x.to(images.dtype)


def next_strength(
    p: Tensor,
    sign_sum: Tensor,
    sign_count: Tensor,
    images: Tensor | int,
    target: float,
    kimg: float,
) -> Tensor:
    """The next p, from the last p and the sum and count of sign(D(x)) over real images since then.

    Section 3, equation 1: r_t = E[sign(D(real))]; p rises if r_t is above `target` and falls if it
    is below. The change is `images` / (1000 `kimg`), where `images` is the number of images since
    the last change: from 0 to 1, p takes at least `kimg` thousand images. The paper clamps p at 0
    and names no upper bound; `augment` takes p above 1 as 1. If the count is 0, p stays the same.
    All tensors are scalars on any device, and none is read back to the host.
    """
    mean = sign_sum / sign_count.clamp(min=1)
    step = torch.sign(mean - target) * images / (kimg * 1000)
    return torch.where(sign_count > 0, p + step, p).clamp(min=0)


class _Draws:
    """The random numbers of a batch: the same three calls draw them for every p and all groups."""

    def __init__(self, rng: BatchRandom, p: Tensor | float):
        # Maps are computed in float64: the last bit of a float32 function may depend on an image's
        # place in the batch, and one worker would then differ from two.
        gates, uniform = rng.uniform(len(_TRANSFORMATIONS)), rng.uniform(8).double()
        normal = rng.normal(7).double()
        p = torch.as_tensor(p, dtype=torch.float32, device=gates.device).detach().clamp(max=1)
        p_rotate = 1 - torch.sqrt(1 - p)  # one or both rotations then happen with probability p
        self._gates = {
            name: gates[:, i] < (p_rotate if name in _ROTATIONS else p)
            for i, name in enumerate(_TRANSFORMATIONS)
        }
        self.flip, self.turn, self.luma_flip = uniform[:, 0], uniform[:, 1], uniform[:, 2]
        self.hue, self.pre_rotate, self.post_rotate = uniform[:, 3:6].unbind(1)
        self.shift = uniform[:, 6:8]
        self.scale, self.stretch, self.brightness = normal[:, 0:3].unbind(1)
        self.contrast, self.saturation = normal[:, 3:5].unbind(1)
        self.move = normal[:, 5:7]

    def gated(self, name: str, value: Tensor, neutral: float) -> Tensor:
        """`value` [N] or [N, k] where an image draws the transformation, `neutral` elsewhere."""
        gate = self._gates[name]
        return torch.where(gate if value.ndim == 1 else gate[:, None], value, neutral)

    def touched(self, *names: str) -> Tensor:
        """bool [N]: whether an image draws one of these transformations."""
        return torch.stack([self._gates[name] for name in names]).any(dim=0)


def _may_skip(touched: Tensor) -> bool:
    """On a CPU, True when no image is touched. On a GPU always False, because the program would
    have to wait for the answer."""
    return touched.device.type == "cpu" and not bool(touched.any())


# ---- blit --------------------------------------------------------------------------------------


def _blit(x: Tensor, draws: _Draws) -> tuple[Tensor, Tensor]:
    """Flip and turn images. Returns them and the shifts int64 [N, 2], in pixels along x and y, that
    the caller must carry out."""
    side = x.shape[-1]
    shift = draws.gated("shift", torch.round((draws.shift * 2 - 1) * 0.125 * side), 0).long()
    if _may_skip(draws.touched("flip", "turn")):
        return x, shift
    flip = draws.gated("flip", torch.floor(draws.flip * 2), 0) == 1  # i ~ U{0, 1}
    turns = draws.gated("turn", torch.floor(draws.turn * 4), 0)  # i ~ U{0, 3}
    return orient(x, flip, turns), shift


def orient(images: Tensor, flip: Tensor, turns: Tensor) -> Tensor:
    """Mirror images [N, C, R, R] left to right where `flip` bool [N], then turn them by 90 degrees
    counter-clockwise `turns` [N] in {0 ... 3} times."""
    side = images.shape[-1]
    line = torch.arange(side, device=images.device)
    row, column = line[None, :, None], line[None, None, :]
    for turn in (1, 2, 3):
        turned = (turns >= turn)[:, None, None]
        row, column = (
            torch.where(turned, column, row),
            torch.where(turned, side - 1 - row, column),
        )
    column = torch.where(flip[:, None, None], side - 1 - column, column)  # [N, R, R]
    return _take(images, row, column)


def translate(images: Tensor, shift: Tensor) -> Tensor:
    """Move images [N, C, R, R] right and down by `shift` int64 [N, 2] pixels; borders mirror."""
    if _may_skip(shift != 0):
        return images
    line = torch.arange(images.shape[-1], device=images.device)
    source = _mirrored(line - shift[:, :, None], images.shape[-1])  # [N, 2, R]
    return _take(images, source[:, 1, :, None], source[:, 0, None, :])


def _mirrored(index: Tensor, side: int) -> Tensor:
    """The pixel at `index` of the endless line ... 2 1 | 0 1 ... R-1 | R-2 ..., R = `side`."""
    index = torch.remainder(index, 2 * side - 2)
    return torch.minimum(index, 2 * side - 2 - index)


def _take(images: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Gather pixels of images [N, C, R, R] at `row` and `column`, int64 broadcast to [N, R, R]."""
    index = (row * images.shape[-1] + column).flatten(1)[:, None]  # [N, 1, R R]
    return images.flatten(2).gather(2, index.expand(-1, images.shape[1], -1)).view_as(images)


# ---- geometry ----------------------------------------------------------------------------------


def _geometry(x: Tensor, shift: Tensor, draws: _Draws) -> Tensor:
    """Shift images by whole pixels [N, 2], then transform them. Images that draw no transformation
    are shifted without resampling."""
    shifted = translate(x, shift)
    touched = draws.touched("scale", "pre_rotate", "stretch", "post_rotate", "move")
    if _may_skip(touched):
        return shifted
    # log-normal factors: exp(N(0, (0.2 ln 2)^2)) = 2^N(0, 0.2^2)
    scale = torch.exp2(0.2 * draws.gated("scale", draws.scale, 0))
    stretch = torch.exp2(0.2 * draws.gated("stretch", draws.stretch, 0))
    move = draws.gated("move", 0.125 * draws.move, 0) * x.shape[-1]  # [N, 2] pixels
    pre = draws.gated("pre_rotate", (draws.pre_rotate * 2 - 1) * math.pi, 0)
    post = draws.gated("post_rotate", (draws.post_rotate * 2 - 1) * math.pi, 0)
    # forward: move . post . stretch . pre . scale . shift; its inverse, right to left
    wide = torch.diag_embed(torch.stack([1 / stretch, stretch], dim=1))
    matrix = (_rotation(-pre) @ wide @ _rotation(-post)) / scale[:, None, None]  # [N, 2, 2]
    offset = -(matrix @ move[:, :, None])[:, :, 0] - shift
    return torch.where(touched.view(-1, 1, 1, 1), warp(x, matrix, offset), shifted)


def _rotation(angle: Tensor) -> Tensor:
    """Matrices [N, 2, 2] that turn (x, y) by angle [N] radians."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)


def warp(images: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Resample images [N, C, R, R] so that the pixel at v shows the source at `matrix` v +
    `offset`.

    v = (x, y) in pixels, right and down from the image's centre; matrix [N, 2, 2], offset [N, 2].
    """
    side = images.shape[-1]
    up, down = _resampling(side, images.dtype, images.device)
    plane = up @ images @ up.T  # [N, C, 4R-3, 4R-3]: one period of the mirrored plane, upsampled
    period = plane.shape[-1] - 1
    centre = side - 1 + _DELAY
    line = torch.arange(down.shape[1], dtype=images.dtype, device=images.device) - centre
    matrix, offset = matrix.to(images.dtype), 2 * offset.to(images.dtype) + centre
    # source coordinates [N, 2R+10, 2R+10, 2]
    from_x = line[:, None] * matrix[:, None, :, 0] + offset[:, None]  # [N, 2R+10, 2]
    from_y = line[:, None] * matrix[:, None, :, 1]
    source = torch.remainder(from_y[:, :, None] + from_x[:, None], period)
    sampled: Tensor = _Sample.apply(  # type: ignore[no-untyped-call]
        plane, source * (2 / period) - 1
    )
    return down @ sampled @ down.T


@functools.lru_cache(maxsize=32)
def _resampling(side: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Matrices that upsample and downsample a line of pixels: [4R-3, R] and [R, 2R+10].

    The first mirrors and upsamples the line. It gives a whole period (2R - 2 pixels) and repeats
    the period's first sample at the end; its rows sum to 1. The second computes pixel j from the
    samples from 2 j on.
    """
    with torch.inference_mode(False):  # cached tensors must be usable with gradients later
        up = torch.zeros(4 * side - 3, side, dtype=torch.float64)
        down = torch.zeros(side, 2 * side + len(_SYM6) - 2, dtype=torch.float64)
        pixels = torch.arange(side)
        for m, tap in enumerate(_SYM6):
            sample = torch.arange(m % 2, len(up), 2)
            up[sample, _mirrored((sample - m) // 2, side)] += math.sqrt(2) * tap
            down[pixels, 2 * pixels + m] = tap / math.sqrt(2)
        return up.to(device, dtype), down.to(device, dtype)


class _Sample(torch.autograd.Function):
    """Bilinear sampling at fixed places. Its transpose is `_Spread`: each is the other's gradient.

    plane [N, C, H, W], places [N, h, w, 2] -> [N, C, h, w]. At -1 and 1 lie the outermost samples.
    `F.grid_sample` is not twice differentiable in every supported torch, and where it is, it also
    computes a gradient of the places, which is not needed here.
    """

    @staticmethod
    def forward(ctx: Any, plane: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = plane.shape[-2:]
        return F.grid_sample(plane, places, align_corners=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return _Spread.apply(gradients[0], places, ctx.size), None  # type: ignore[no-untyped-call]


class _Spread(torch.autograd.Function):
    """Adds samples [N, C, h, w] to the points of a plane [N, C, H, W] that they lie between.

    On a GPU the order of the sums is not fixed, so results may differ in the last bits.
    """

    @staticmethod
    def forward(ctx: Any, samples: Tensor, places: Tensor, size: torch.Size) -> Tensor:
        ctx.save_for_backward(places)
        with torch.enable_grad():
            plane = samples.new_zeros(*samples.shape[:2], *size).requires_grad_(True)
            sampled = F.grid_sample(plane, places, align_corners=True)
        (spread,) = torch.autograd.grad(sampled, plane, samples)
        return spread

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return _Sample.apply(gradients[0], places), None, None  # type: ignore[no-untyped-call]


# ---- colour ------------------------------------------------------------------------------------


def _colour(x: Tensor, draws: _Draws) -> Tensor:
    """Change the colours of the images by the transformations that each has drawn."""
    touched = draws.touched("brightness", "contrast", "luma_flip", "hue", "saturation")
    if _may_skip(touched):
        return x
    matrix, offset = colour_map(
        0.2 * draws.gated("brightness", draws.brightness, 0),
        torch.exp2(0.5 * draws.gated("contrast", draws.contrast, 0)),
        draws.gated("luma_flip", torch.floor(draws.luma_flip * 2), 0),  # i ~ U{0, 1}
        draws.gated("hue", (draws.hue * 2 - 1) * math.pi, 0),
        torch.exp2(draws.gated("saturation", draws.saturation, 0)),
    )
    if x.shape[1] == 1:  # grey stays grey: the sums of the rows differ by rounding alone
        matrix, offset = matrix.sum(dim=2, keepdim=True).mean(dim=1, keepdim=True), offset[:, :1]
    matrix, offset = matrix.to(x.dtype), offset.to(x.dtype)
    coloured = torch.baddbmm(offset[:, :, None], matrix, x.flatten(2)).view_as(x)
    return torch.where(touched.view(-1, 1, 1, 1), coloured, x)


def colour_map(
    brightness: Tensor, contrast: Tensor, luma_flip: Tensor, hue: Tensor, saturation: Tensor
) -> tuple[Tensor, Tensor]:
    """The matrix [N, 3, 3] and offset [N, 3] that map colours to matrix RGB + offset, from
    parameters [N].

    The steps are, in this order: `brightness` is added; `contrast` multiplies; `luma_flip` 1
    reflects at the plane of no luma, whose normal is the axis v = (1, 1, 1) / sqrt 3; `hue` turns
    about v, in radians; `saturation` multiplies the distance from v.
    """
    identity = torch.eye(3, dtype=hue.dtype, device=hue.device)
    luma = torch.full_like(identity, 1 / 3)  # v v^T
    cross = (identity.roll(1, dims=0) - identity.roll(-1, dims=0)) / math.sqrt(3)  # v x .
    flip, hue, saturation = (t.view(-1, 1, 1) for t in (luma_flip, hue, saturation))
    cos, sin = torch.cos(hue), torch.sin(hue)
    reflect = identity - 2 * flip * luma
    turn = cos * identity + sin * cross + (1 - cos) * luma  # Rodrigues' formula
    saturate = saturation * identity + (1 - saturation) * luma
    matrix = contrast.view(-1, 1, 1) * (saturate @ turn @ reflect)  # [N, 3, 3]
    return matrix, matrix.sum(dim=2) * brightness[:, None]
