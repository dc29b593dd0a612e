"""LAPGAN, a Laplacian pyramid of GANs: Denton et al. 2015, arXiv 1506.05751.

The coarsest level is a plain GAN of small images. Every finer level is a conditional GAN: it makes
the band of detail that an upsampled image of half the size lacks. Each level is trained on its own,
on the pyramid of real images; only sampling uses all levels together, coarse to fine.

This file adds R1 to the paper: without it, the fully connected discriminator of the coarsest level
soon wins, whatever its dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
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
    refuse_truncation,
    single_stage,
)
from gan_train.errors import UserError
from gan_train.nn import growth, losses
from gan_train.nn.convolution import compute_dtype, conv2d
from gan_train.nn.layers import dropout, he_start
from gan_train.nn.pyramid import downsample, upsample
from gan_train.nn.schedules import Momentum, following, linear
from gan_train.rng import BatchRandom
from gan_train.settings import Count, Length, Rate, Resolution, Settings


class LAPGANConfig(Settings):
    """Defaults are the paper's where it gives them. Keys of dictionaries are resolutions."""

    name: Literal["lapgan"] = "lapgan"
    conditional: bool = Field(False, description="The class enters G and D of every level.")
    start_resolution: int = Field(8, ge=4, description="Coarsest level, a power of two.")
    z_dim: Count = Field(
        100,
        description="Numbers of noise at the coarsest level.",
    )
    units_g: Count = Field(1200, description="Width of the coarsest G's two hidden layers.")
    units_d: Count = Field(600, description="Width of the coarsest D's two hidden layers.")
    channels_g: dict[Resolution, Count] = Field(
        {}, description="Feature maps of G at a finer level; default 64."
    )
    channels_d: dict[Resolution, Count] = Field(
        {}, description="Feature maps of D at a finer level; default 64."
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="Rate in the coarsest D's hidden layers.")
    r1_gamma: dict[Resolution, NonNegativeFloat] = Field(
        {}, description="Gamma of R1 at a level; by default none, as in the paper."
    )
    r1_every: Count = Field(4, description="Steps between R1 updates (lazy regularisation).")
    optimizer: Literal["sgd", "adam"] = Field("sgd", description="sgd: the paper's. adam: faster.")
    lr: Rate = Field(0.02, description="Learning rate of the first update.")
    lr_decay: float = following(
        "increment per step", 4e-5, "Every update divides the rate by 1 + this.", ge=0
    )
    momentum: tuple[Momentum, Momentum] = Field(
        (0.5, 0.8),
        description="The momentum of SGD, at the start and at the end of the schedule; linear "
        "between them.",
    )
    betas: tuple[Momentum, Momentum] = Field((0.5, 0.99), description="The betas of Adam.")
    kimg: Length = following("length", 10000.0, "Length of training, in kimg.", gt=0)

    def build(self, shape: ImageShape, batch: int) -> LAPGAN:
        """The networks for images of this shape, trained with this global batch."""
        return LAPGAN(self, shape, batch)


class LAPGAN(Adversary):
    """The family: every resolution r has networks `generator_r` and `discriminator_r`, each with an
    optimizer and a phase. No gradient crosses from one level to another, so all levels train side
    by side in one stage."""

    def __init__(self, config: LAPGANConfig, shape: ImageShape, batch: int):
        super().__init__()
        self.levels = growth.levels(config.start_resolution, shape.resolution)
        shape.check_classes(config.conditional)
        for name, allowed in (
            ("channels_g", self.levels[1:]),
            ("channels_d", self.levels[1:]),
            ("r1_gamma", self.levels),
        ):
            unknown = sorted(set(getattr(config, name)) - set(allowed))
            if unknown:
                raise UserError(
                    f"family.{name} names resolution {unknown[0]}; allowed: "
                    f"{', '.join(map(str, allowed)) or 'none, as there is no finer level'}"
                )
        self.config, self.shape, self.batch = config, shape, batch
        self.conditional = config.conditional
        self.averaged = tuple(f"generator_{side}" for side in self.levels)
        self.noise_sizes = [config.z_dim, *(side**2 for side in self.levels[1:])]
        self.z_dim = sum(self.noise_sizes)

        classes = len(shape.classes) if config.conditional else 0
        first, *finer = self.levels
        self.add_module(f"generator_{first}", CoarseGenerator(config, shape.channels, classes))
        self.add_module(
            f"discriminator_{first}", CoarseDiscriminator(config, shape.channels, classes)
        )
        for side in finer:
            self.add_module(
                f"generator_{side}", BandGenerator(config, shape.channels, side, classes)
            )
            self.add_module(
                f"discriminator_{side}", BandDiscriminator(config, shape.channels, side, classes)
            )

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        c = self.config
        settings = OptimizerSettings(lr=c.lr, betas=c.betas, momentum=c.momentum[0])
        networks = {"D": "discriminator", "G": "generator"}
        return {
            f"{letter}{side}": OptimizerSpec((f"{network}_{side}",), settings, c.optimizer)
            for letter, network in networks.items()
            for side in self.levels
        }

    def stages(self) -> tuple[Stage, ...]:
        phases, every = [], self.config.r1_every
        for side in self.levels:
            phases.append(Phase(f"D{side}", f"D{side}", partial(self.loss_d, side)))
            if self.config.r1_gamma.get(side, 0) > 0:
                r1 = partial(self.loss_r1, side)
                phases.append(Phase(f"D{side}_r1", f"D{side}", r1, every=every))
            phases.append(Phase(f"G{side}", f"G{side}", partial(self.loss_g, side)))
        kimg = self.config.kimg
        return single_stage("all-levels", self.shape, self.batch, kimg, *phases, milestone=False)

    def settings(
        self, optimizer: str, declared: OptimizerSettings, stage: Stage, clock: Clock
    ) -> OptimizerSettings:
        """Section 4: the rate is divided by 1 + `lr_decay` at every update, and the momentum rises
        over the schedule."""
        c = self.config
        rate: float = c.lr / (1 + c.lr_decay) ** clock.step
        return replace(declared, lr=rate, momentum=linear(c.momentum, clock.nimg / stage.nimg))

    def generate(self, side: int, z: Tensor, low: Tensor | None, label: Tensor | None) -> Tensor:
        """Images [N, C, side, side] of one level's generator. `low` is the upsampled image of the
        level below; it is None at the coarsest level, where z is [N, z_dim] and not
        [N, side^2]."""
        image: Tensor = self.get_submodule(f"generator_{side}")(z, low, label)
        return image

    def discriminate(
        self,
        side: int,
        image: Tensor,
        low: Tensor | None,
        label: Tensor | None,
        random: BatchRandom,
    ) -> Tensor:
        """Logits [N] of one level's discriminator for images [N, C, side, side]; `low` and `label`
        are those of `generate`."""
        discriminator = self.get_submodule(f"discriminator_{side}")
        logit: Tensor = discriminator(image, low, label, random)
        return logit

    def real(self, side: int, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Real images [N, C, side, side], and the same images downsampled and upsampled again, or
        None at the coarsest level."""
        image = batch["image"]
        while image.shape[-1] > side:
            image = downsample(image)
        return image, upsample(downsample(image)) if side > self.levels[0] else None

    def _generate_on(self, side: int, low: Tensor | None, batch: Batch, rng: BatchRandom) -> Tensor:
        z = rng.normal(self.config.z_dim) if low is None else rng.noise(side * side)
        return self.generate(side, z.to(batch["image"].dtype), low, batch.get("label"))

    def loss_d(self, side: int, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """D tells real images from images that G made from the same low-pass image and class
        (equation 2)."""
        real, low = self.real(side, batch)
        with torch.no_grad():
            fake = self._generate_on(side, low, batch, rng).to(real.dtype)
        label = batch.get("label")
        logits = self.discriminate(
            side,
            torch.cat([real, fake]),
            None if low is None else torch.cat([low, low]),
            None if label is None else torch.cat([label, label]),
            rng.repeat(2),
        )
        real_logit, fake_logit = logits.chunk(2)
        metrics = {
            f"logit/real/{side}": real_logit.detach().mean(),
            f"logit/fake/{side}": fake_logit.detach().mean(),
        }
        return Losses({f"D{side}": losses.logistic_d(real_logit, fake_logit)}, metrics)

    def loss_r1(self, side: int, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """The R1 penalty of one level, a phase of its own. D's gradient is taken with respect to
        the image, and not to the low-pass image and the class that D is conditioned on."""
        real, low = self.real(side, batch)
        penalty = losses.r1_penalty(
            lambda image: self.discriminate(side, image, low, batch.get("label"), rng), real
        )
        return Losses({f"r1/{side}": self.config.r1_gamma[side] * penalty})

    def loss_g(self, side: int, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """G learns to make images, from real low-pass images, that D takes for real."""
        _, low = self.real(side, batch)
        fake = self._generate_on(side, low, batch, rng)
        logit = self.discriminate(side, fake, low, batch.get("label"), rng)
        return Losses({f"G{side}": losses.nonsaturating_g(logit)})

    def images_by_level(self, z: Tensor, label: Tensor | None) -> list[Tensor]:
        """The images that sampling makes at every level, coarse to fine: section 3.2, equation 6.

        z [N, z_dim] holds the noise of the levels one after the other; label int64 [N]. The
        images of a level depend on the noise of that level and of the coarser ones.
        """
        images: list[Tensor] = []
        parts = z.to(next(self.parameters()).dtype).split(self.noise_sizes, dim=1)
        for side, noise in zip(self.levels, parts, strict=True):
            low = upsample(images[-1]) if images else None
            images.append(self.generate(side, noise, low, label))
        return images

    def sample(self, z: Tensor, label: Tensor | None, truncation: float = 1.0) -> Tensor:
        refuse_truncation(truncation, "lapgan", "its noise enters level by level")
        return self.images_by_level(z, label)[-1]


class CoarseGenerator(nn.Module):
    """Fully connected: latents [N, z_dim], labels [N] to images [N, C, r, r] in [-1, 1]."""

    def __init__(self, config: LAPGANConfig, channels: int, classes: int):
        super().__init__()
        self.channels, self.side = channels, config.start_resolution
        pixels = self.side**2
        self.plane = ClassPlane(classes, self.side)
        self.hidden0 = nn.Linear(config.z_dim + (pixels if classes else 0), config.units_g)
        self.hidden1 = nn.Linear(config.units_g, config.units_g)
        self.out = nn.Linear(config.units_g, channels * pixels)
        self.apply(he_start)

    def forward(self, z: Tensor, low: None, label: Tensor | None) -> Tensor:
        x = torch.cat([z, *(p.flatten(1) for p in self.plane(label))], dim=1)
        x = F.relu(self.hidden0(x))
        x = F.relu(self.hidden1(x))
        return torch.tanh(self.out(x)).view(-1, self.channels, self.side, self.side)


class CoarseDiscriminator(nn.Module):
    """Fully connected: images [N, C, r, r] and labels [N] to logits [N]."""

    def __init__(self, config: LAPGANConfig, channels: int, classes: int):
        super().__init__()
        side, self.dropout = config.start_resolution, config.dropout
        self.plane = ClassPlane(classes, side)
        self.hidden0 = nn.Linear((channels + self.plane.planes) * side**2, config.units_d)
        self.hidden1 = nn.Linear(config.units_d, config.units_d)
        self.out = nn.Linear(config.units_d, 1)
        self.apply(he_start)

    def forward(
        self, image: Tensor, low: None, label: Tensor | None, random: BatchRandom
    ) -> Tensor:
        x = torch.cat([image, *self.plane(label)], dim=1).flatten(1)
        x = dropout(F.leaky_relu(self.hidden0(x), 0.2), self.dropout, random)
        x = dropout(F.leaky_relu(self.hidden1(x), 0.2), self.dropout, random)
        logit: Tensor = self.out(x)
        return logit.squeeze(1)


class BandGenerator(nn.Module):
    """Three convolutions: noise [N, r^2], low-pass images [N, C, r, r] and labels [N] to images of
    the same size, which are the sum of the low-pass images and a generated band."""

    def __init__(self, config: LAPGANConfig, channels: int, side: int, classes: int):
        super().__init__()
        width = config.channels_g.get(side, 64)
        self.plane = ClassPlane(classes, side)
        self.conv0 = Convolution(channels + 1 + self.plane.planes, width, 3)
        self.conv1 = Convolution(width, width, 3)
        self.out = Convolution(width, channels, 3)

    def band(self, z: Tensor, low: Tensor, label: Tensor | None) -> Tensor:
        """The generated band [N, C, r, r], which `forward` adds to `low`."""
        x = torch.cat([low, z.view_as(low[:, :1]), *self.plane(label)], dim=1)
        x = F.relu(self.conv0(x))
        x = F.relu(self.conv1(x))
        band: Tensor = self.out(x)
        return band

    def forward(self, z: Tensor, low: Tensor, label: Tensor | None) -> Tensor:
        # real images are in this range, too; clamping keeps backgrounds clean
        return (low + self.band(z, low, label)).clamp(-1, 1)


class BandDiscriminator(nn.Module):
    """Two convolutions: images and low-pass images, both [N, C, r, r], and labels [N] to logits
    [N]."""

    def __init__(self, config: LAPGANConfig, channels: int, side: int, classes: int):
        super().__init__()
        width = config.channels_d.get(side, 64)
        self.plane = ClassPlane(classes, side)
        self.conv0 = Convolution(2 * channels + self.plane.planes, width, 4, stride=2)
        self.conv1 = Convolution(width, width, 4, stride=2)
        self.out = nn.Linear(width * (side // 4) ** 2, 1)
        self.apply(he_start)

    def forward(
        self, image: Tensor, low: Tensor, label: Tensor | None, random: BatchRandom
    ) -> Tensor:
        x = torch.cat([image, low, *self.plane(label)], dim=1)
        x = F.leaky_relu(self.conv0(x), 0.2)
        x = F.leaky_relu(self.conv1(x), 0.2)
        logit: Tensor = self.out(x.flatten(1))
        return logit.squeeze(1)


class ClassPlane(nn.Module):
    """Turns a class into a plane beside the image's channels: section 4.1. A table of planes is the
    same as the paper's linear layer on the one-hot class. Labels [N] to a list with one tensor
    [N, 1, side, side], or an empty list without classes."""

    def __init__(self, classes: int, side: int):
        super().__init__()
        self.side, self.planes = side, 1 if classes else 0
        self.table = nn.Embedding(classes, side * side) if classes else None

    def forward(self, label: Tensor | None) -> list[Tensor]:
        if self.table is None:
            return []
        assert label is not None, "conditional networks need labels"
        return [self.table(label).view(-1, 1, self.side, self.side)]


class Convolution(nn.Conv2d):
    """A convolution with He's initialisation. An odd kernel of stride 1 keeps the size; a 4x4
    kernel of stride 2 downsamples by 2."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1):
        super().__init__(inputs, outputs, kernel, stride, padding=(kernel - 1) // 2)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(cast(Tensor, self.bias))

    def forward(self, x: Tensor) -> Tensor:
        kind = compute_dtype(x)
        weight, bias = self.weight.to(kind), cast(Tensor, self.bias).to(kind)
        return conv2d(x.to(kind), weight, bias, stride=self.stride[0], padding=int(self.padding[0]))
