"""Progressive growing of GANs: Karras et al. 2017, arXiv 1710.10196.

Training starts at a low resolution, which doubles from level to level; each new level is faded in
over `fade_kimg` and then trained for `stable_kimg`. All levels exist from the start, so that growth
never changes the state dict: levels not yet reached have no gradient and do not move.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
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
    refuse_truncation,
)
from gan_train.nn import growth, losses
from gan_train.nn.layers import (
    EqualizedConv2d,
    EqualizedLinear,
    downsample,
    minibatch_stddev,
    pixel_norm,
    upsample,
)
from gan_train.nn.schedules import Momentum, following
from gan_train.rng import BatchRandom
from gan_train.settings import Count, Rate, Resolution, Settings


class ProGANConfig(Settings):
    """Defaults are the paper's single-GPU schedule. Keys of dictionaries are resolutions."""

    name: Literal["progan"] = "progan"
    conditional: bool = Field(
        False, description="The class enters G (embedding) and D (projection)."
    )
    start_resolution: int = Field(4, ge=4, description="First level, a power of two.")
    z_dim: Count = 512
    fmap_base: Count = Field(8192, description="Channels at resolution r are 2 * base / r.")
    fmap_max: Count = Field(512, description="The most channels at any resolution.")
    channels: dict[Resolution, Count] = Field(
        {}, description="Overrides the channels of a resolution."
    )
    output: Literal["linear", "tanh"] = Field("linear", description="Range of G's output.")
    loss: Literal["wgan-gp", "logistic-r1"] = "wgan-gp"
    gp_weight: float = Field(10.0, ge=0, description="Lambda of WGAN-GP.")
    drift_weight: float = Field(0.001, ge=0, description="Keeps WGAN logits near zero.")
    r1_gamma: float = Field(10.0, ge=0, description="Gamma of R1, used with logistic-r1.")
    r1_every: Count = Field(16, description="Steps between R1 updates (lazy regularisation).")
    mbstd_group: Count = Field(4, description="Samples whose standard deviation D sees.")
    fade_kimg: growth.Kimg = following("length", 600.0, "Images of a fade, in kimg.")
    stable_kimg: growth.Kimg = following("length", 600.0, "Images after a fade, in kimg.")
    milestones_from: int = Field(
        4, ge=4, description="The lowest resolution whose level ends with a checkpoint and a score."
    )
    batch: dict[Resolution, Count] = Field(
        {}, description="Global batch by resolution; else train.batch."
    )
    lr: Rate = 0.001
    lr_by_resolution: dict[Resolution, Rate] = Field(
        {}, description="Overrides lr at a resolution."
    )
    betas: tuple[Momentum, Momentum] = (0.0, 0.99)

    def build(self, shape: ImageShape, batch: int) -> ProGAN:
        """The networks for images of this shape. `batch` is the global batch of resolutions for
        which this configuration has none."""
        return ProGAN(self, shape, batch)

    def width(self, resolution: int) -> int:
        """Channels of the feature maps at a resolution."""
        return self.channels.get(resolution, min(2 * self.fmap_base // resolution, self.fmap_max))


class GeneratorBlock(nn.Module):
    """Upsampling, then twice a 3x3 convolution, LeakyReLU and PixelNorm.

    [N, I, H, W] -> [N, O, 2H, 2W].
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv0 = EqualizedConv2d(inputs, outputs, 3, resample="up")
        self.conv1 = EqualizedConv2d(outputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = pixel_norm(F.leaky_relu(self.conv0(x), 0.2))
        return pixel_norm(F.leaky_relu(self.conv1(x), 0.2))


class Generator(nn.Module):
    """Latents [N, z_dim] and labels [N] to images [N, C, r, r]; `progress` holds r."""

    def __init__(self, config: ProGANConfig, shape: ImageShape, levels: list[int]):
        super().__init__()
        self.levels, self.tanh = levels, config.output == "tanh"
        first = config.width(levels[0])
        self.first_side = levels[0]
        inputs = config.z_dim
        self.embed: nn.Embedding | None = None
        if config.conditional:
            self.embed = nn.Embedding(len(shape.classes), config.z_dim)
            inputs *= 2
        # He's gain divided by 4 is the authors' choice for this layer, which PixelNorm follows
        self.dense = EqualizedLinear(inputs, first * levels[0] ** 2, gain=2**0.5 / 4)
        self.conv = EqualizedConv2d(first, first, 3)
        self.blocks = nn.ModuleDict()
        self.to_rgb = nn.ModuleDict(
            {str(levels[0]): EqualizedConv2d(first, shape.channels, 1, 1.0)}
        )
        for below, level in pairwise(levels):
            self.blocks[str(level)] = GeneratorBlock(config.width(below), config.width(level))
            self.to_rgb[str(level)] = EqualizedConv2d(config.width(level), shape.channels, 1, 1.0)

    def forward(self, z: Tensor, label: Tensor | None, progress: growth.Progress) -> Tensor:
        z = pixel_norm(z.to(self.dense.weight.dtype))
        if self.embed is not None:
            assert label is not None, "a conditional generator needs labels"
            z = torch.cat([z, pixel_norm(self.embed(label))], dim=1)
        x = self.dense(z).view(z.shape[0], -1, self.first_side, self.first_side)
        x = pixel_norm(F.leaky_relu(x, 0.2))
        x = pixel_norm(F.leaky_relu(self.conv(x), 0.2))
        below = x
        for level in self.levels[1:]:
            if level > progress.resolution:
                break
            below, x = x, self.blocks[str(level)](x)
        image: Tensor = self.to_rgb[str(progress.resolution)](x)  # [N, C, r, r]
        if progress.alpha < 1:
            old = upsample(self.to_rgb[str(progress.resolution // 2)](below))
            image = torch.lerp(old, image, progress.alpha)
        return torch.tanh(image) if self.tanh else image


class DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions with LeakyReLU, and downsampling. [N, I, 2H, 2W] -> [N, O, H, W].

    Downsampling is fused with the second convolution, so it comes before the second LeakyReLU.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv0 = EqualizedConv2d(inputs, inputs, 3)
        self.conv1 = EqualizedConv2d(inputs, outputs, 3, resample="down")

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv0(x), 0.2)
        return F.leaky_relu(self.conv1(x), 0.2)


class Discriminator(nn.Module):
    """Images [N, C, r, r] and labels [N] to logits [N]."""

    def __init__(self, config: ProGANConfig, shape: ImageShape, levels: list[int]):
        super().__init__()
        self.levels, self.group = levels, config.mbstd_group
        last = config.width(levels[0])
        self.from_rgb = nn.ModuleDict()
        self.blocks = nn.ModuleDict()
        for below, level in pairwise(levels):
            self.blocks[str(level)] = DiscriminatorBlock(config.width(level), config.width(below))
        for level in levels:
            self.from_rgb[str(level)] = EqualizedConv2d(shape.channels, config.width(level), 1)
        self.conv = EqualizedConv2d(last + 1, last, 3)
        self.dense = EqualizedLinear(last * levels[0] ** 2, last)
        self.out = EqualizedLinear(last, 1, gain=1.0)
        # projection discriminator: Miyato and Koyama 2018, arXiv 1802.05637, equation 3
        self.embed = nn.Embedding(len(shape.classes), last) if config.conditional else None

    def forward(self, image: Tensor, label: Tensor | None, progress: growth.Progress) -> Tensor:
        r = progress.resolution
        x = F.leaky_relu(self.from_rgb[str(r)](image), 0.2)
        for level in reversed(self.levels[1:]):
            if level > r:
                continue
            x = self.blocks[str(level)](x)
            if level == r and progress.alpha < 1:
                old = F.leaky_relu(self.from_rgb[str(r // 2)](downsample(image)), 0.2)
                x = torch.lerp(old, x, progress.alpha)
        x = F.leaky_relu(self.conv(minibatch_stddev(x, self.group)), 0.2)
        x = F.leaky_relu(self.dense(x.flatten(1)), 0.2)  # [N, last]
        logit = self.out(x).squeeze(1)  # [N]
        if self.embed is not None:
            assert label is not None, "a conditional discriminator needs labels"
            logit = logit + (self.embed(label) * x).sum(dim=1) / x.shape[1] ** 0.5
        return logit


class ProGAN(Adversary):
    """The family: each level but the first has a stage in which it fades in, and each level has one
    without a fade. Both networks grow together, and real images are faded like generated ones."""

    averaged = ("generator",)

    def __init__(self, config: ProGANConfig, shape: ImageShape, batch: int):
        super().__init__()
        self.levels = growth.levels(config.start_resolution, shape.resolution)
        shape.check_classes(config.conditional)
        self.config, self.shape, self.z_dim = config, shape, config.z_dim
        self.conditional, self.grain = config.conditional, config.mbstd_group
        self.default_batch = batch
        self.generator = Generator(config, shape, self.levels)
        self.discriminator = Discriminator(config, shape, self.levels)
        self.progress = growth.Progress(self.levels[0], 1.0)
        self.schedule = self._schedule()

    def _schedule(self) -> tuple[Stage, ...]:
        c = self.config
        phases = [Phase("D", "D", self.loss_d), Phase("G", "G", self.loss_g)]
        if c.loss == "logistic-r1":
            phases.insert(1, Phase("D_r1", "D", self.loss_r1, every=c.r1_every))
        return growth.growth_stages(
            self.levels,
            c.fade_kimg,
            c.stable_kimg,
            c.batch,
            self.default_batch,
            c.lr_by_resolution,
            tuple(phases),
            c.milestones_from,
        )

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        return pair_of_optimizers(OptimizerSettings(lr=self.config.lr, betas=self.config.betas))

    def stages(self) -> tuple[Stage, ...]:
        return self.schedule

    def advance(self, clock: Clock) -> None:
        self.progress = growth.progress_at(self.schedule, clock.nimg)

    def status(self) -> dict[str, float]:
        return {"resolution": float(self.progress.resolution), "alpha": self.progress.alpha}

    def _generate(self, batch: Batch, rng: BatchRandom) -> Tensor:
        fake: Tensor = self.generator(rng.normal(self.z_dim), batch.get("label"), self.progress)
        return fake

    def loss_d(self, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """D tells reals from fakes of the same classes."""
        c, label = self.config, batch.get("label")
        real = growth.fade_reals(batch["image"], self.progress.alpha)
        with torch.no_grad():
            fake = self._generate(batch, rng).to(real.dtype)
        both = None if label is None else torch.cat([label, label])
        logits = self.discriminator(torch.cat([real, fake]), both, self.progress)
        real_logit, fake_logit = logits.chunk(2)
        metrics = losses.mean_logits(real_logit, fake_logit)
        if c.loss == "logistic-r1":
            return Losses({"D": losses.logistic_d(real_logit, fake_logit)}, metrics)
        penalty = losses.gradient_penalty(
            lambda x: self.discriminator(x, label, self.progress),
            real,
            fake,
            rng.uniform().to(real.dtype),
        )
        terms = {
            "D": losses.wasserstein_d(real_logit, fake_logit),
            "gp": c.gp_weight * penalty,
            "drift": c.drift_weight * losses.drift(real_logit),
        }
        return Losses(terms, metrics)

    def loss_r1(self, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """The R1 penalty, a phase of its own."""
        penalty = losses.r1_penalty(
            lambda x: self.discriminator(x, batch.get("label"), self.progress),
            growth.fade_reals(batch["image"], self.progress.alpha),
        )
        return Losses({"r1": self.config.r1_gamma * penalty})

    def loss_g(self, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """G learns to make images that D takes for real."""
        fake = self._generate(batch, rng)
        logit = self.discriminator(fake, batch.get("label"), self.progress)
        adversarial = (
            losses.nonsaturating_g if self.config.loss == "logistic-r1" else losses.wasserstein_g
        )
        return Losses({"G": adversarial(logit)})

    def sample(self, z: Tensor, label: Tensor | None, truncation: float = 1.0) -> Tensor:
        refuse_truncation(truncation, "progan", "its latents are normalised to one length")
        image: Tensor = self.generator(z, label, self.progress)
        return image
