"""StyleGAN2's discriminator: residual (or plain) blocks, minibatch standard deviation, projection.

Karras et al. 2019 (arXiv 1912.04958), section 4.1 and figure 7. Parameters have the names of the
published networks, so that published weights can be loaded.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_train.adversary import ImageShape
from gan_train.families.stylegan import resampling
from gan_train.families.stylegan.config import StyleGANSettings
from gan_train.families.stylegan.mapping import Dense, Mapping
from gan_train.families.stylegan.synthesis import clamp_to
from gan_train.nn.convolution import compute_dtype, conv2d
from gan_train.nn.layers import minibatch_stddev


class Conv(nn.Module):
    """Convolution with equalised learning rate. [N, I, H, W] -> [N, O, H, W], or with `down`
    [N, O, H / 2, W / 2].

    With `rectify`, LeakyReLU(0.2) times sqrt(2) follows. `gain` scales the result: both parts of a
    residual block use sqrt(1/2), so that their sum keeps the variance.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        down: bool = False,
        rectify: bool = True,
        gain: float = 1.0,
        clamp: float | None = None,
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if rectify else None
        self.down, self.rectify = down, rectify
        self.gain = gain * math.sqrt(2) if rectify else gain
        self.clamp = None if clamp is None else clamp * gain
        self.scale = 1 / math.sqrt(inputs * kernel * kernel)

    def forward(self, x: Tensor) -> Tensor:
        kind = compute_dtype(x)
        # weight and bias take the gain: LeakyReLU(c x) = c LeakyReLU(x) for positive c
        weight = (self.weight * (self.scale * self.gain)).to(kind)
        bias = None if self.bias is None else (self.bias * self.gain).to(kind)
        x = x.to(kind)
        if not self.down:
            y = conv2d(x, weight, bias, padding=weight.shape[-1] // 2)
        elif weight.shape[-1] == 1:
            y = conv2d(resampling.downsample(x), weight, bias)
        else:
            y = resampling.convolve_downsample(x, weight, bias)
        if self.rectify:
            y = F.leaky_relu_(y, 0.2)
        return clamp_to(y, self.clamp)


class DiscriminatorBlock(nn.Module):
    """Two convolutions, of which the second downsamples. [N, I, 2H, 2W] -> [N, O, H, W].

    The block at full resolution takes images with `channels` channels, and turns them into features
    first. For all other blocks `channels` is 0, and they take features.
    """

    def __init__(self, config: StyleGANSettings, resolution: int, channels: int):
        super().__init__()
        inputs, outputs = config.width(resolution), config.width(resolution // 2)
        clamp = config.clamp
        if channels:
            self.fromrgb = Conv(channels, inputs, 1, clamp=clamp)
        self.residual = config.discriminator == "resnet"
        gain = math.sqrt(0.5) if self.residual else 1.0
        self.conv0 = Conv(inputs, inputs, 3, clamp=clamp)
        self.conv1 = Conv(inputs, outputs, 3, down=True, gain=gain, clamp=clamp)
        if self.residual:
            self.skip = Conv(inputs, outputs, 1, down=True, rectify=False, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "fromrgb"):
            x = self.fromrgb(x)
        y: Tensor = self.conv1(self.conv0(x))
        return y + self.skip(x) if self.residual else y


class Epilogue(nn.Module):
    """The last block: features [N, I, 4, 4] to logits [N, 1], or, if `conditional`, to vectors
    [N, I] that are projected on the classes' embeddings."""

    def __init__(self, config: StyleGANSettings, conditional: bool):
        super().__init__()
        width = config.width(4)
        self.group = config.mbstd_group
        self.conv = Conv(width + 1, width, 3, clamp=config.clamp)
        self.fc = Dense(width * 4 * 4, width)
        self.out = Dense(width, width if conditional else 1, rectify=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(minibatch_stddev(x, self.group))
        logits: Tensor = self.out(self.fc(x.to(self.fc.weight.dtype).flatten(1)))
        return logits


class Discriminator(nn.Module):
    """Images [N, C, R, R] and labels int64 [N] to logits [N]."""

    def __init__(self, config: StyleGANSettings, shape: ImageShape):
        super().__init__()
        self.resolutions = [2**k for k in reversed(range(3, shape.resolution.bit_length()))]
        for resolution in self.resolutions:
            channels = shape.channels if resolution == shape.resolution else 0
            setattr(self, f"b{resolution}", DiscriminatorBlock(config, resolution, channels))
        classes = len(shape.classes) if config.conditional else 0
        self.b4 = Epilogue(config, conditional=classes > 0)
        if classes:
            width = config.width(4)
            self.mapping = Mapping(
                0, width, config.class_mapping_layers, config.mapping_lr, classes
            )

    def forward(self, image: Tensor, label: Tensor | None) -> Tensor:
        x = image
        for resolution in self.resolutions:
            x = self.get_submodule(f"b{resolution}")(x)
        y: Tensor = self.b4(x)  # [N, 1], with classes [N, width]
        if hasattr(self, "mapping"):
            # projection: Miyato and Koyama 2018, arXiv 1802.05637
            return (y * self.mapping(None, label)).sum(dim=1) / math.sqrt(y.shape[1])
        return y.squeeze(1)
