"""Generation 1: AdaIN and progressive growth. Karras et al. 2018, arXiv 1812.04948.

The networks are those of section 2 and appendix C: a learned constant, noise and AdaIN after every
layer, bilinear upsampling and downsampling; the discriminator is ProGAN's. Training starts at
`start_resolution` and doubles the resolution; each new level is faded in. All levels exist from the
start, so that growth never changes the state dict.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_train.adversary import Clock, ImageShape, Noise, Stage
from gan_train.families.stylegan.config import StyleGANSettings
from gan_train.families.stylegan.family import StyleGAN
from gan_train.families.stylegan.mapping import Dense, build_mapping
from gan_train.families.stylegan.noise import noise_maps
from gan_train.families.stylegan.resampling import BLUR, apply_filter
from gan_train.nn import growth
from gan_train.nn.growth import Progress
from gan_train.nn.layers import (
    EqualizedConv2d,
    EqualizedLinear,
    downsample,
    minibatch_stddev,
    upsample,
)


class StyledLayer(nn.Module):
    """Noise with a strength per channel, bias, LeakyReLU and AdaIN. x [N, C, H, W], w [N, D] ->
    [N, C, H, W].

    AdaIN (equation 1) brings each channel of each image to mean 0 and deviation 1, then scales and
    shifts it by an affine map of w.
    """

    def __init__(self, channels: int, w_dim: int, resolution: int):
        super().__init__()
        self.noise_strength = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.affine = Dense(w_dim, 2 * channels, rectify=False)
        self.noise_const: Tensor
        self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        if noise is not None:
            x = x + noise.to(x.dtype) * self.noise_strength.to(x.dtype)[:, None, None]
        x = F.leaky_relu(x + self.bias.to(x.dtype)[:, None, None], 0.2)
        scale, shift = self.affine(w).to(x.dtype)[:, :, None, None].chunk(2, dim=1)
        return F.instance_norm(x, eps=1e-8) * (scale + 1) + shift


class Generator(nn.Module):
    """Mapping and synthesis: ws [N, num_ws, w_dim] to images [N, C, r, r]; `progress` holds r."""

    def __init__(self, config: StyleGANSettings, shape: ImageShape):
        super().__init__()
        self.mapping = build_mapping(config, shape)
        self.levels = [2**k for k in range(2, shape.resolution.bit_length())]
        self.num_ws, self.tanh = 2 * len(self.levels), config.output == "tanh"
        # The paper starts with ones. Their deviation is 0, so AdaIN would divide 0 by 0.
        self.const = nn.Parameter(torch.randn(config.width(4), 4, 4))
        self.convolutions, self.styled = nn.ModuleDict(), nn.ModuleDict()
        self.to_rgb = nn.ModuleDict()
        for below, level in pairwise([4, *self.levels]):
            width = config.width(level)
            if level > 4:
                self.convolutions[f"{level}-0"] = EqualizedConv2d(
                    config.width(below), width, 3, resample="up"
                )
            self.convolutions[f"{level}-1"] = EqualizedConv2d(width, width, 3)
            for i in range(2):
                self.styled[f"{level}-{i}"] = StyledLayer(width, config.w_dim, level)
            self.to_rgb[f"{level}"] = EqualizedConv2d(width, shape.channels, 1, 1.0)

    def forward(self, ws: Tensor, noise: Noise, progress: Progress) -> Tensor:
        layers = self.styled.values()  # two of each level, in order
        stored = [layer.noise_const for layer in layers if isinstance(layer, StyledLayer)]
        used = sum(2 for level in self.levels if level <= progress.resolution)
        maps = noise_maps(noise, stored[:used])
        x = self.const.expand(ws.shape[0], -1, -1, -1)
        below = x
        for i, level in enumerate(r for r in self.levels if r <= progress.resolution):
            below = x
            if level > 4:
                x = apply_filter(self.convolutions[f"{level}-0"](x), padding=1, taps=BLUR)
            x = self.styled[f"{level}-0"](x, ws[:, 2 * i], maps[2 * i])
            x = self.convolutions[f"{level}-1"](x)
            x = self.styled[f"{level}-1"](x, ws[:, 2 * i + 1], maps[2 * i + 1])
        image: Tensor = self.to_rgb[f"{progress.resolution}"](x)  # [N, C, r, r]
        image = image.to(self.const.dtype)  # the blend is float32
        if progress.alpha < 1:
            old = upsample(self.to_rgb[f"{progress.resolution // 2}"](below)).to(image.dtype)
            image = torch.lerp(old, image, progress.alpha)
        return torch.tanh(image) if self.tanh else image


class Discriminator(nn.Module):
    """ProGAN's discriminator with a blur before downsampling: images [N, C, r, r] and labels [N]
    to logits [N]."""

    def __init__(self, config: StyleGANSettings, shape: ImageShape):
        super().__init__()
        self.levels = [2**k for k in range(2, shape.resolution.bit_length())]
        self.group, last = config.mbstd_group, config.width(4)
        self.from_rgb, self.convolutions = nn.ModuleDict(), nn.ModuleDict()
        for below, level in pairwise([4, *self.levels]):
            width = config.width(level)
            self.from_rgb[f"{level}"] = EqualizedConv2d(shape.channels, width, 1)
            if level > 4:
                self.convolutions[f"{level}-0"] = EqualizedConv2d(width, width, 3)
                self.convolutions[f"{level}-1"] = EqualizedConv2d(
                    width, config.width(below), 3, resample="down"
                )
        self.conv = EqualizedConv2d(last + 1, last, 3)
        self.dense = EqualizedLinear(last * 16, last)
        self.out = EqualizedLinear(last, 1, gain=1.0)
        # projection discriminator: Miyato and Koyama 2018, arXiv 1802.05637, equation 3
        self.embed = nn.Embedding(len(shape.classes), last) if config.conditional else None

    def forward(self, image: Tensor, label: Tensor | None, progress: Progress) -> Tensor:
        r = progress.resolution
        x = F.leaky_relu(self.from_rgb[f"{r}"](image), 0.2)
        for level in reversed([n for n in self.levels if 4 < n <= r]):
            x = F.leaky_relu(self.convolutions[f"{level}-0"](x), 0.2)
            x = self.convolutions[f"{level}-1"](apply_filter(x, padding=1, taps=BLUR))
            x = F.leaky_relu(x, 0.2)
            if level == r and progress.alpha < 1:
                old = F.leaky_relu(self.from_rgb[f"{r // 2}"](downsample(image)), 0.2)
                x = torch.lerp(old.to(x.dtype), x, progress.alpha)
        x = F.leaky_relu(self.conv(minibatch_stddev(x, self.group)), 0.2)
        x = F.leaky_relu(self.dense(x.flatten(1)), 0.2)  # [N, last]
        logit = self.out(x).squeeze(1)  # [N]
        if self.embed is not None:
            assert label is not None, "a conditional discriminator needs labels"
            logit = logit + (self.embed(label) * x).sum(dim=1) / x.shape[1] ** 0.5
        return logit


class GrowingStyleGAN(StyleGAN):
    """StyleGAN of 2018: StyleGAN2's losses on networks that grow. Real images fade like fakes."""

    def build_networks(self) -> None:
        config = self.config
        self.levels = growth.levels(config.start_resolution, self.shape.resolution)
        generator = Generator(config, self.shape)
        self.generator, self.num_ws = generator, generator.num_ws
        self.discriminator = Discriminator(config, self.shape)
        self.progress = growth.Progress(self.levels[0], 1.0)
        self.schedule = growth.growth_stages(
            self.levels,
            config.fade_kimg,
            config.stable_kimg,
            config.batch,
            self.default_batch,
            config.lr_by_resolution,
            self.phases(),
        )

    def stages(self) -> tuple[Stage, ...]:
        return self.schedule

    def advance(self, clock: Clock) -> None:
        self.progress = growth.progress_at(self.schedule, clock.nimg)

    def status(self) -> dict[str, float]:
        return {"resolution": float(self.progress.resolution), "alpha": self.progress.alpha}

    def synthesise(self, ws: Tensor, noise: Noise) -> Tensor:
        image: Tensor = self.generator(ws, noise, self.progress)
        return image

    def layers_in_use(self) -> int:
        return 2 * (self.progress.resolution.bit_length() - 2)

    def prepare_reals(self, image: Tensor) -> Tensor:
        return growth.fade_reals(image, self.progress.alpha)

    def discriminate(self, image: Tensor, label: Tensor | None) -> Tensor:
        logits: Tensor = self.discriminator(image, label, self.progress)
        return logits
