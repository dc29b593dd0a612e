"""SRGAN, super-resolution: Ledig et al. 2016, arXiv 1609.04802.

G upscales images of any size. It is first trained alone on pixel errors (SRResNet). The best answer
to these is the mean of all images that fit the input, which is blurred. Therefore G is then trained
against D, with a content loss on the features of a recognition network. Inputs are the training
images, bicubically downsampled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gan_train.adversary import (
    Adversary,
    Batch,
    Clock,
    ImageShape,
    Losses,
    OptimizerSettings,
    OptimizerSpec,
    Phase,
    Stage,
    pair_of_optimizers,
)
from gan_train.errors import UserError
from gan_train.images.resize import bicubic_upsample_float
from gan_train.nn import losses
from gan_train.nn.batchnorm import BatchNorm
from gan_train.nn.schedules import Momentum, following
from gan_train.pretrained.content import ContentDistance, ContentName
from gan_train.rng import BatchRandom
from gan_train.settings import Count, Layers, Length, PathText, Rate, Settings

_LEAST_SIDE = 32  # D downsamples four times, by 2


class SRGANConfig(Settings):
    """Defaults are the paper's sizes and schedule, but without batch normalisation, and G's output
    is added to the bicubically upsampled input."""

    name: Literal["srgan"] = "srgan"
    scale: Literal[2, 4] = Field(4, description="How many times as long the sides get.")
    blocks: Layers = Field(16, description="Residual blocks of G, at the input's size.")
    width: Count = Field(64, description="Channels of G at the input's size.")
    high_width: Count = Field(64, description="Channels of G above the input's size.")
    kernel: Literal[3, 5, 7, 9] = Field(9, description="Size of G's first and last filters.")
    skip: Literal["bicubic", "none"] = Field(
        "bicubic", description="What G's output is added to: `bicubic` is the upsampled input."
    )
    norm: Literal["none", "batch"] = Field(
        "none", description="Normalisation in G and D; `batch` is the paper's."
    )
    discriminator_width: Count = Field(
        64, description="Channels of D's first layer; the last has 8 times as many."
    )
    pixel_loss: Literal["mse", "l1"] = "mse"
    content: ContentName = Field(
        "efficientnet_lite0",
        description="Network of the content loss; the paper's is vgg19, conv5_4 before activation.",
    )
    content_weights: PathText | None = Field(
        None,
        description="vgg19: path or URL of torchvision's state dict.",
        json_schema_extra={"path": True},
    )
    content_sha256: str | None = Field(
        None, description="vgg19: the SHA-256 of the weights.", pattern="^[0-9a-f]{64}$"
    )
    pixel_weight: float = Field(0.0, ge=0, description="Weight of the pixel loss beside D.")
    content_weight: float = Field(1.0, ge=0, description="Weight of the content loss.")
    adversarial_weight: float = Field(1e-3, gt=0, description="Weight of G's adversarial loss.")
    pretrain_kimg: Length = following("length", 16_000.0, "Images of G alone, in kimg.", ge=0)
    pretrain_lr: Rate = 1e-4
    adversarial_kimg: Length = following("length", 1600.0, "Images of G against D, in kimg.", ge=0)
    lr: Rate = Field(1e-4, description="Learning rate of G and D against each other.")
    fine_kimg: Length = following(
        "length", 1600.0, "Images at `fine_lr`, at the end, in kimg.", ge=0
    )
    fine_lr: Rate = 1e-5
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)

    def build(self, shape: ImageShape, batch: int) -> SRGAN:
        """The networks for upscaled images of this shape. Raises UserError if it does not fit."""
        return SRGAN(self, shape, batch)


def _normalised(config: SRGANConfig, channels: int) -> nn.Module:
    return BatchNorm(channels) if config.norm == "batch" else nn.Identity()


class ResidualBlock(nn.Module):
    """x + convolution(PReLU(convolution(x))), [N, C, H, W] (figure 4)."""

    def __init__(self, config: SRGANConfig):
        super().__init__()
        width = config.width
        self.conv0 = nn.Conv2d(width, width, 3, padding=1)
        self.norm0 = _normalised(config, width)
        self.act = nn.PReLU()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm1 = _normalised(config, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm0(self.conv0(x)))
        return x + self.norm1(self.conv1(y))


class Upsampling(nn.Module):
    """Convolution, pixel shuffle (Shi et al. 2016, arXiv 1609.05158), PReLU.

    [N, I, H, W] -> [N, O, 2H, 2W].
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, 4 * outputs, 3, padding=1)
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(F.pixel_shuffle(self.conv(x), 2))


class Generator(nn.Module):
    """SRResNet: images [N, C, H, W] of any size to [N, C, scale H, scale W], about [-1, 1]."""

    def __init__(self, config: SRGANConfig, channels: int):
        super().__init__()
        self.scale, self.skip = config.scale, config.skip == "bicubic"
        width, high, kernel = config.width, config.high_width, config.kernel
        self.first = nn.Conv2d(channels, width, kernel, padding=kernel // 2)
        self.act = nn.PReLU()
        self.blocks = nn.Sequential(*(ResidualBlock(config) for _ in range(config.blocks)))
        self.join = nn.Conv2d(width, width, 3, padding=1)
        self.join_norm = _normalised(config, width)
        times = config.scale.bit_length() - 1
        self.up = nn.Sequential(*(Upsampling(high if i else width, high) for i in range(times)))
        self.last = nn.Conv2d(high, channels, kernel, padding=kernel // 2)
        self._start()

    def _start(self) -> None:
        """Set He's variances for PReLU, whose slope starts at 1/4. At first, residual blocks add
        little, and with `skip` the output is the bicubically upsampled input."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.25)
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            for block in self.blocks.children():
                assert isinstance(block, ResidualBlock)
                block.conv1.weight *= 0.1
            if self.skip:
                self.last.weight.zero_()

    def forward(self, low: Tensor) -> Tensor:
        x = self.act(self.first(low))  # [N, width, H, W]
        x = x + self.join_norm(self.join(self.blocks(x)))
        image: Tensor = self.last(self.up(x)).to(low.dtype)  # [N, C, scale H, scale W]
        return image + bicubic_upsample_float(low, self.scale) if self.skip else image


def _reach(config: SRGANConfig) -> int:
    """The greatest distance, in pixels of the input, from which an output pixel is influenced. It
    is summed from the last layer to the first; d pixels are ceil(d / 2) pixels at half the size."""
    distance = config.kernel // 2
    for _ in range(config.scale.bit_length() - 1):
        distance = -(-distance // 2) + 1
    distance += 1 + 2 * config.blocks + config.kernel // 2
    return max(distance, 2)  # as far as the bicubic skip looks


class Discriminator(nn.Module):
    """Images [N, C, R, R] to logits [N], as in figure 4: eight convolutions, of which every second
    one downsamples, then two dense layers."""

    def __init__(self, config: SRGANConfig, shape: ImageShape):
        super().__init__()
        layers: list[nn.Module] = []
        inputs, width = shape.channels, config.discriminator_width
        for outputs in (width, 2 * width, 4 * width, 8 * width):
            for stride in (1, 2):
                layers.append(nn.Conv2d(inputs, outputs, 3, stride, padding=1))
                if inputs != shape.channels:
                    layers.append(_normalised(config, outputs))
                layers.append(nn.LeakyReLU(0.2))
                inputs = outputs
        side = shape.resolution // 16
        layers += [nn.Flatten(), nn.Linear(inputs * side**2, 16 * width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.out = nn.Linear(16 * width, 1)
        for module in self.layers:  # unnormalised, the signal would fade on its way
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, a=0.2)
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, image: Tensor) -> Tensor:
        logit: Tensor = self.out(self.layers(image)).squeeze(1)
        return logit


class SRGAN(Adversary):
    """The family: G is trained alone, then against D, then against D at a lower rate."""

    def __init__(self, config: SRGANConfig, shape: ImageShape, batch: int):
        """Raises UserError where images, content network and settings do not fit together."""
        super().__init__()
        if shape.resolution < _LEAST_SIDE:
            raise UserError(
                f"data.resolution is {shape.resolution}; srgan needs {_LEAST_SIDE} or more"
            )
        self.config, self.shape, self.batch = config, shape, batch
        self.scale, self.reach = config.scale, _reach(config)
        self.generator = Generator(config, shape.channels)
        self.discriminator = Discriminator(config, shape)
        self.content = ContentDistance(
            config.content, config.content_weights, config.content_sha256
        )
        self.content.check(shape.resolution)

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return pair_of_optimizers(OptimizerSettings(lr=self.config.lr, betas=self.config.betas))

    def stages(self) -> tuple[Stage, ...]:
        c = self.config
        alone = (Phase("G_pretrain", "G", self.loss_pretrain),)
        against = (
            Phase("G", "G", self.loss_g, leaves=("upscaled",)),
            Phase("D", "D", self.loss_d, takes=("upscaled",)),
        )
        spans = (
            ("pretrain", c.pretrain_kimg, alone, c.pretrain_lr, False),
            ("adversarial", c.adversarial_kimg, against, c.lr, True),
            ("fine", c.fine_kimg, against, c.fine_lr, c.adversarial_kimg == 0),
        )
        stages = tuple(
            Stage(
                name,
                round(kimg * 1000),
                self.shape.resolution,
                self.batch,
                phases,
                lr=lr,
                fresh_optimizers=fresh,
                milestone=True,
            )
            for name, kimg, phases, lr, fresh in spans
            if kimg > 0
        )
        if not stages:
            raise UserError(
                "family: pretrain_kimg, adversarial_kimg and fine_kimg are all 0; set one of them"
            )
        return stages

    def loss_pretrain(self, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """G alone: the mean pixel error (equation 4, or L1)."""
        c, truth = self.config, batch["image"]
        if c.content_weight > 0 and c.adversarial_kimg + c.fine_kimg > 0:
            # so that missing weights are reported now, not when this stage ends
            self.content.prepare(truth.device, truth.dtype)
        image = self.generator(batch["low"])
        return Losses({"pixel": self._pixel(image, truth)}, _psnr(image, truth))

    def loss_g(self, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """The perceptual loss of G (equation 3). It leaves G's images to the phase D."""
        c, truth = self.config, batch["image"]
        image = self.generator(batch["low"])
        logit = self.discriminator(image)
        terms = {"adversarial": c.adversarial_weight * losses.nonsaturating_g(logit)}
        if c.content_weight > 0:
            terms["content"] = c.content_weight * self.content(image, truth).mean()
        if c.pixel_weight > 0:
            terms["pixel"] = c.pixel_weight * self._pixel(image, truth)
        return Losses(terms, _psnr(image, truth), leaves={"upscaled": image.detach()})

    def loss_d(self, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """D tells real images from those that G made in the same step (equation 2)."""
        # in two passes, so that batch normalisation takes the statistics of each
        real, fake = self.discriminator(batch["image"]), self.discriminator(batch["upscaled"])
        return Losses({"D": losses.logistic_d(real, fake)}, losses.mean_logits(real, fake))

    def _pixel(self, image: Tensor, truth: Tensor) -> Tensor:
        return (
            F.mse_loss(image, truth) if self.config.pixel_loss == "mse" else F.l1_loss(image, truth)
        )

    def upscale(self, low: Tensor) -> Tensor:
        image: Tensor = self.generator(low.to(self.generator.first.weight.dtype))
        return image


def _psnr(image: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """PSNR [N] in dB, over all channels and the whole image: for the log, not a published score."""
    error = (image.detach() - truth).square().mean((1, 2, 3))
    return {"psnr": 10 * torch.log10(4 / error)}
