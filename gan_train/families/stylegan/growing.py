"""Generation 1: AdaIN and progressive growth. Karras et al. 2018, arXiv 1812.04948.

The networks of section 2 and appendix C: a learned constant, noise and AdaIN after every layer,
bilinear changes of size; the discriminator is ProGAN's. Training starts at 8x8 and doubles; each
level is faded in. All levels exist from the start, so that growth never changes the state dict.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_train.adversary import Clock, ImageShape, Noise, Stage
from gan_train.errors import UserError
from gan_train.families.stylegan.config import StyleGANConfig
from gan_train.families.stylegan.family import StyleGAN
from gan_train.families.stylegan.mapping import Dense, Mapping
from gan_train.families.stylegan.resampling import BLUR, filtered
from gan_train.layers import (
    EqualizedConv2d,
    EqualizedLinear,
    downsample,
    minibatch_stddev,
    upsample,
)
from gan_train.rng import BatchRandom


@dataclass
class Progress:
    """Where growth stands: images of `resolution`, whose newest level counts for `alpha`."""

    resolution: int
    alpha: float


class StyledLayer(nn.Module):
    """Noise with a strength per channel, bias, LeakyReLU, AdaIN. [N, C, H, W], w [N, D] -> same.

    AdaIN (equation 1): each channel of each image to mean 0 and deviation 1, then scaled and
    shifted by an affine map of w.
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
    """Mapping and synthesis: ws [N, num_ws, w_dim] to images [N, C, r, r], r from `progress`."""

    def __init__(self, config: StyleGANConfig, shape: ImageShape):
        super().__init__()
        classes = len(shape.classes) if config.conditional else 0
        self.mapping = Mapping(
            config.z_dim, config.w_dim, config.mapping_layers, config.mapping_lr, classes
        )
        self.mapping.register_buffer("w_avg", torch.zeros(config.w_dim))
        self.levels = [2**k for k in range(2, shape.resolution.bit_length())]
        self.num_ws, self.tanh = 2 * len(self.levels), config.output == "tanh"
        # the paper starts with ones, whose deviation AdaIN would divide by: 0 / 0 but for rounding
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
        maps = self.noise_maps(noise, progress.resolution)
        x = self.const.expand(len(ws), -1, -1, -1)
        below = x
        for i, level in enumerate(r for r in self.levels if r <= progress.resolution):
            below = x
            if level > 4:
                x = filtered(self.convolutions[f"{level}-0"](x), padding=1, taps=BLUR)
            x = self.styled[f"{level}-0"](x, ws[:, 2 * i], maps[2 * i])
            x = self.convolutions[f"{level}-1"](x)
            x = self.styled[f"{level}-1"](x, ws[:, 2 * i + 1], maps[2 * i + 1])
        image: Tensor = self.to_rgb[f"{progress.resolution}"](x)  # [N, C, r, r]
        if progress.alpha < 1:
            old = upsample(self.to_rgb[f"{progress.resolution // 2}"](below))
            image = torch.lerp(old, image, progress.alpha)
        return torch.tanh(image) if self.tanh else image

    def noise_maps(self, noise: Noise, resolution: int) -> list[Tensor | None]:
        """One map for every layer up to a resolution: [N, 1, r, r] random, [r, r] stored."""
        sides = [r for r in self.levels if r <= resolution for _ in range(2)]
        if isinstance(noise, BatchRandom):
            parts = noise.noise(sum(r * r for r in sides)).split([r * r for r in sides], dim=1)
            return [p.reshape(-1, 1, r, r) for p, r in zip(parts, sides, strict=True)]
        if noise == "none":
            return [None] * len(sides)
        layers = [m for m in self.styled.values() if isinstance(m, StyledLayer)]
        return [layer.noise_const for layer in layers[: len(sides)]]


class Discriminator(nn.Module):
    """Images [N, C, r, r] and classes [N] to logits [N]: ProGAN's, with a blur before halving."""

    def __init__(self, config: StyleGANConfig, shape: ImageShape):
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
            x = self.convolutions[f"{level}-1"](filtered(x, padding=1, taps=BLUR))
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
    """StyleGAN of 2018: the family's losses on networks that grow, reals faded like fakes."""

    def build_networks(self) -> None:
        config, start = self.config, self.config.start_resolution
        if start & (start - 1) or start > self.shape.resolution:
            raise UserError(
                f"family.start_resolution is {start}; allowed: a power of two from 4 to "
                f"data.resolution ({self.shape.resolution})"
            )
        generator = Generator(config, self.shape)
        self.generator, self.num_ws = generator, generator.num_ws
        self.discriminator = Discriminator(config, self.shape)
        self.levels = [r for r in generator.levels if r >= start]
        self.progress = Progress(self.levels[0], 1.0)

    def stages(self) -> tuple[Stage, ...]:
        c, stages = self.config, []
        for level in self.levels:
            batch = c.batch.get(level, self.default_batch)
            if level > self.levels[0]:
                fade = images_of(c.fade_kimg, level)
                stages.append(
                    Stage(f"{level}-fade", fade, level, batch, self.phases(), fresh_optimizers=True)
                )
            stable = images_of(c.stable_kimg, level)
            stages.append(Stage(f"{level}", stable, level, batch, self.phases(), milestone=True))
        return tuple(stages)

    def advance(self, clock: Clock) -> None:
        """Resolution and alpha from the images seen: alpha rises linearly through a fade."""
        super().advance(clock)
        start = 0
        self.progress = Progress(self.levels[-1], 1.0)
        for stage in self.stages():
            if clock.nimg < start + stage.nimg:
                fading = stage.name.endswith("-fade")
                alpha = (clock.nimg - start) / stage.nimg if fading else 1.0
                self.progress = Progress(stage.resolution, alpha)
                return
            start += stage.nimg

    def status(self) -> dict[str, float]:
        now = {"resolution": float(self.progress.resolution), "alpha": self.progress.alpha}
        return super().status() | now

    def synthesise(self, ws: Tensor, noise: Noise) -> Tensor:
        image: Tensor = self.generator(ws, noise, self.progress)
        return image

    def layers_in_use(self) -> int:
        return 2 * (self.progress.resolution.bit_length() - 2)

    def seen(self, image: Tensor) -> Tensor:
        """Reals lose the detail that fakes cannot have yet."""
        if self.progress.alpha == 1:
            return image
        return torch.lerp(upsample(downsample(image)), image, self.progress.alpha)

    def judged(self, image: Tensor, label: Tensor | None) -> Tensor:
        logits: Tensor = self.discriminator(image, label, self.progress)
        return logits


def images_of(kimg: float | dict[int, float], resolution: int) -> int:
    """Images of a span, which may be given by resolution."""
    if isinstance(kimg, dict):
        if resolution not in kimg:
            raise UserError(f"family: no kimg given for resolution {resolution} in {kimg}")
        kimg = kimg[resolution]
    return round(kimg * 1000)
