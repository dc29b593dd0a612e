"""StyleGAN2's synthesis network: modulated convolutions, noise, and RGB summed over resolutions.

Karras et al. 2019 (arXiv 1912.04958), section 2 and figure 7. Parameters and buffers have the names
of the published networks, so that published weights can be loaded.

The paper gives every image a weight of its own (equation 3). Here one weight serves all images:
the style scales the input of the convolution, and demodulation scales its output. The result is the
same, by one large convolution instead of N small ones. `plain.py` has the paper's form, with which
tests compare this one.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_train.adversary import ImageShape, Noise
from gan_train.families.stylegan import resampling
from gan_train.families.stylegan.config import StyleGANSettings
from gan_train.families.stylegan.elementwise import Features, add_bias_and_noise_
from gan_train.families.stylegan.mapping import Dense, build_mapping
from gan_train.families.stylegan.noise import noise_maps
from gan_train.nn.convolution import compute_dtype, conv2d


def clamp_to(x: Tensor, bound: float | None) -> Tensor:
    """x cut off at -bound and +bound, if there is a bound."""
    return x if bound is None else x.clamp(-bound, bound)


def demodulation_deviations(weight: Tensor, style: Tensor) -> Tensor:
    """The standard deviations by which demodulation divides (equation 3): the modulated
    convolution's output has them where its input has deviation 1. weight [O, I, k, k],
    style [N, I] -> [N, O]."""
    squares = weight.square().sum(dim=(2, 3))  # [O, I]
    with torch.autocast(style.device.type, enabled=False):  # cheap, so it keeps full precision
        return (style.square() @ squares.T + 1e-8).sqrt()


def modulated_conv(
    x: Features,
    weight: Tensor,
    style: Tensor,
    bias: Tensor,
    noise: Tensor | None,
    strength: Tensor,
    *,
    gain: float,
    up: bool,
) -> Features:
    """`gain` times the sum of the modulated, demodulated convolution (equations 1 to 3), bias, and
    noise times strength.

    x [N, I, H, W], weight [O, I, 3, 3], style [N, I] -> [N, O, H, W], or [N, O, 2H, 2W] with `up`;
    bias [O], strength []. noise is [N, 1, r, r], or [r, r] for all images; r is the result's side.
    """
    deviation = demodulation_deviations(weight, style)
    kind = compute_dtype(x.values)
    modulated = x.values * x.modulation(style).to(x.values.dtype)[:, :, None, None]
    y = (
        resampling.upsample_convolve(modulated, weight.to(kind))
        if up
        else conv2d(modulated, weight.to(kind), padding=1)
    )
    # the result's factor divides by the deviation, so bias and noise are multiplied by it here
    y = add_bias_and_noise_(y, bias * deviation, noise, strength * deviation)
    return Features(y, gain / deviation)


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise, bias and LeakyReLU. x [N, I, H, W], w [N, D] ->
    [N, O, r, r].

    `noise` is a map of standard normal numbers, [N, 1, r, r] or [r, r].
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        w_dim: int,
        resolution: int,
        *,
        up: bool = False,
        clamp: float | None = None,
    ):
        super().__init__()
        self.up, self.clamp = up, clamp
        self.affine = Dense(w_dim, inputs, bias=1.0, rectify=False)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.noise_const: Tensor
        self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def forward(self, x: Features, w: Tensor, noise: Tensor | None) -> Features:
        # the LeakyReLU's gain is applied before it: LeakyReLU(c x) = c LeakyReLU(x) for positive c
        parts = self.weight, self.affine(w), self.bias, noise, self.noise_strength
        y, factor = modulated_conv(x, *parts, gain=math.sqrt(2), up=self.up)
        x = Features(F.leaky_relu_(y, 0.2), factor)
        return x if self.clamp is None else Features(clamp_to(x.materialise(), self.clamp))


class ToImage(nn.Module):
    """Modulated 1x1 convolution without demodulation. [N, I, H, W], w [N, D] -> [N, C, H, W]."""

    def __init__(self, inputs: int, channels: int, w_dim: int, clamp: float | None = None):
        super().__init__()
        self.clamp, self.scale = clamp, 1 / math.sqrt(inputs)
        self.affine = Dense(w_dim, inputs, bias=1.0, rectify=False)
        self.weight = nn.Parameter(torch.randn(channels, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Features, w: Tensor) -> Tensor:
        style = x.modulation(self.affine(w) * self.scale)  # [N, I]
        # with so few output channels a weight for every image is small: N matrix products
        # [H W, I] x [I, C], which leave the gradient of x in channels_last
        kind = compute_dtype(x.values)
        weight = (self.weight[:, :, 0, 0].T * style[:, :, None]).to(kind)  # [N, I, C]
        pixels = x.values.to(kind).flatten(2).transpose(1, 2)  # [N, H W, I]
        y = torch.baddbmm(self.bias.to(kind), pixels, weight)  # [N, H W, C]
        y = y.transpose(1, 2).unflatten(2, x.values.shape[2:])
        return clamp_to(y, self.clamp)


class SynthesisBlock(nn.Module):
    """The layers of one resolution: an upsampling convolution (in all but the first block, which
    has a learned constant instead), a convolution, and an image that is added to the one below."""

    def __init__(self, config: StyleGANSettings, inputs: int, resolution: int, channels: int):
        super().__init__()
        width, clamp = config.width(resolution), config.clamp
        self.first = inputs == 0
        if self.first:
            self.const = nn.Parameter(torch.randn(width, resolution, resolution))
        else:
            self.conv0 = StyledConv(inputs, width, config.w_dim, resolution, up=True, clamp=clamp)
        self.conv1 = StyledConv(width, width, config.w_dim, resolution, clamp=clamp)
        self.torgb = ToImage(width, channels, config.w_dim, clamp)

    def forward(
        self,
        x: Features | None,
        image: Tensor | None,
        ws: list[Tensor],
        noise: list[Tensor | None],
    ) -> tuple[Features, Tensor]:
        """Features and image of this resolution, from those of the resolution below, or from None.

        `ws` are the styles [N, w_dim] of conv0 (not in the first block), conv1 and torgb; `noise`
        are the maps of conv0 and conv1.
        """
        if x is None:
            const = self.const.expand(ws[0].shape[0], -1, -1, -1).to(compute_dtype(self.const))
            x = Features(const.contiguous(memory_format=memory_layout(self.conv1.weight)))
        else:
            x = self.conv0(x, ws[0], noise[0])
        x = self.conv1(x, ws[-2], noise[-1])
        added = self.torgb(x, ws[-1]).to(self.torgb.weight.dtype)  # the sum is float32
        return x, added if image is None else resampling.upsample(image) + added


def memory_layout(weight: Tensor) -> torch.memory_format:
    """The memory format of the filters `weight`: activations are fastest in the same format."""
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


class Synthesis(nn.Module):
    """The paper's g: makes images [N, C, R, R] from styles [N, num_ws, w_dim]."""

    def __init__(self, config: StyleGANSettings, shape: ImageShape):
        super().__init__()
        self.resolutions = [2**k for k in range(2, shape.resolution.bit_length())]
        self.num_ws = 2 * len(self.resolutions)
        for below, resolution in pairwise([0, *self.resolutions]):
            inputs = config.width(below) if below else 0
            block = SynthesisBlock(config, inputs, resolution, shape.channels)
            setattr(self, f"b{resolution}", block)

    def forward(self, ws: Tensor, noise: Noise) -> Tensor:
        assert ws.shape[1] == self.num_ws, tuple(ws.shape)
        stored = [m.noise_const for m in self.modules() if isinstance(m, StyledConv)]
        maps = noise_maps(noise, stored)
        x = image = None
        at = 0
        for resolution in self.resolutions:
            # torgb shares its style with the next block's first convolution
            count = 2 if resolution == self.resolutions[0] else 3
            styles = list(ws[:, at : at + count].unbind(dim=1))
            block = self.get_submodule(f"b{resolution}")
            x, image = block(x, image, styles, maps[at : at + count - 1])
            at += count - 1
        assert image is not None
        return image


class Generator(nn.Module):
    """Mapping and synthesis. A call makes images [N, C, R, R] from styles [N, num_ws, w_dim]."""

    def __init__(self, config: StyleGANSettings, shape: ImageShape):
        super().__init__()
        self.mapping = build_mapping(config, shape)
        self.synthesis = Synthesis(config, shape)
        self.num_ws, self.tanh = self.synthesis.num_ws, config.output == "tanh"

    def forward(self, ws: Tensor, noise: Noise) -> Tensor:
        image: Tensor = self.synthesis(ws, noise)
        return torch.tanh(image) if self.tanh else image
