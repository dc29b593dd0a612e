"""StyleGAN and StyleGAN2 as an adversary: schedule, losses, and statistics that training keeps.

Karras et al. 2018 (arXiv 1812.04948), Karras et al. 2019 (1912.04958), ADA: Karras et al. 2020
(2006.06676). The networks of the two generations are in files of their own; losses, style mixing,
truncation and augmentation are the same for both and are in this file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from gan_train.adversary import (
    Adversary,
    Batch,
    Clock,
    ImageShape,
    Losses,
    Noise,
    OptimizerSettings,
    OptimizerSpec,
    Phase,
    Stage,
)
from gan_train.families.stylegan import synthesis
from gan_train.families.stylegan.config import StyleGANSettings
from gan_train.families.stylegan.discriminator import Discriminator
from gan_train.nn import losses
from gan_train.nn.augment import augment, next_strength
from gan_train.rng import BatchRandom

CLASS_MEAN_LATENTS = 1000
"""The number of latents over which the mean w of a class is taken."""


def shares_fakes(config: StyleGANSettings) -> bool:
    """Whether D's loss takes the fakes of G's loss. (A benchmark replaces this function.)"""
    return config.shared_fakes


class Pending(nn.Module):
    """A mean that the losses of one step measure, kept until a running value is updated by it.

    The trainer averages `total` and `count` over the workers, so that the running value depends on
    the global batch alone, however it was split into workers and micro-batches.
    """

    total: Tensor
    count: Tensor

    def __init__(self, *shape: int):
        super().__init__()
        self.register_buffer("total", torch.zeros(shape))
        self.register_buffer("count", torch.zeros([]))

    @torch.no_grad()
    def add(self, mean: Tensor) -> None:
        """Add the mean over one micro-batch."""
        self.total += mean.detach().to(self.total.dtype)
        self.count += 1

    @torch.no_grad()
    def mean(self) -> tuple[Tensor, Tensor]:
        """The mean, and whether anything was added. Afterwards, the object is cleared."""
        mean, some = self.total / self.count.clamp(min=1), self.count > 0
        self.clear()
        return mean, some

    def clear(self) -> None:
        """Forget what was added."""
        self.total.zero_()
        self.count.zero_()


def path_lengths(image: Tensor, noise: Tensor, ws: Tensor) -> Tensor:
    """Each image's path length |J^T y|, [N], differentiable: arXiv 1912.04958, section 3.2.

    image [N, C, H, W] was made from ws [N, num_ws, w_dim]. `noise` is y, which is back-propagated:
    normal numbers of the image's shape and deviation 1 / sqrt(H W). Squares are averaged over the
    layers.
    """
    (gradient,) = torch.autograd.grad((image * noise).sum(), ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


class StyleGAN(Adversary):
    """StyleGAN2. `growing.py` derives generation 1 from it, with other networks, which grow."""

    averaged = ("generator",)
    generator: nn.Module
    discriminator: nn.Module
    num_ws: int
    path_length_mean: Tensor
    augment_p: Tensor
    augment_nimg: Tensor

    def __init__(self, config: StyleGANSettings, shape: ImageShape, batch: int):
        super().__init__()
        shape.check_classes(config.conditional)
        self.config, self.shape, self.default_batch = config, shape, batch
        self.z_dim, self.w_dim = config.z_dim, config.w_dim
        self.conditional = config.conditional
        # steps from one update of a regulariser to the next; 0 without the regulariser
        lengths = config.generation == 2 and config.path_length_weight > 0
        self.path_every = config.path_length_every if lengths else 0
        self.r1_every = config.r1_every if config.r1_gamma else 0
        self.shared_fakes = shares_fakes(config)
        shrink = config.path_length_shrink if lengths else 1
        self.grain = math.lcm(config.mbstd_group, shrink)
        self.build_networks()
        # running statistics; another one, the mean w, is in the generator
        self.register_buffer("path_length_mean", torch.zeros([]))
        self.register_buffer("augment_p", torch.tensor(config.augment_p))
        self.register_buffer("augment_nimg", torch.zeros([], dtype=torch.int64))
        self.pending_w = Pending(config.w_dim)
        self.pending_length = Pending()
        self.pending_sign = Pending()

    def build_networks(self) -> None:
        """Register the generator and the discriminator of this generation."""
        generator = synthesis.Generator(self.config, self.shape)
        self.generator, self.num_ws = generator, generator.num_ws
        self.discriminator = Discriminator(self.config, self.shape)

    # ---- schedule ------------------------------------------------------------------------------

    def lazy_ratio(self, optimizer: str) -> float:
        """k / (k + 1) for a regulariser every k steps: arXiv 1912.04958, appendix B. It multiplies
        the learning rate and is the exponent of the betas, because the regulariser's steps come in
        addition to those of the main loss."""
        k = self.path_every if optimizer == "G" else self.r1_every
        return k / (k + 1) if k > 1 else 1.0

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        c = self.config
        nets = {"G": ("generator",), "D": ("discriminator",)}
        specs = {}
        for name, of in nets.items():
            ratio = self.lazy_ratio(name)
            betas = (c.betas[0] ** ratio, c.betas[1] ** ratio)
            specs[name] = OptimizerSpec(of, OptimizerSettings(lr=c.lr * ratio, betas=betas))
        return specs

    def settings(
        self, optimizer: str, declared: OptimizerSettings, stage: Stage, clock: Clock
    ) -> OptimizerSettings:
        lr = self.config.lr if stage.lr is None else stage.lr
        return replace(declared, lr=lr * self.lazy_ratio(optimizer))

    def phases(self) -> tuple[Phase, ...]:
        """The phases of a step: each network's loss, and its regulariser every few steps. A
        regulariser that is due at every step is a term of the loss instead, as R1 is in the first
        paper."""
        c, shared = self.config, ("fake",) if self.shared_fakes else ()
        phases = [Phase("G", "G", self.loss_g, leaves=shared)]
        if self.path_every > 1:
            phases.append(Phase("G_path", "G", self.loss_path, every=c.path_length_every))
        phases.append(Phase("D", "D", self.loss_d, takes=shared))
        if self.r1_every > 1:
            phases.append(Phase("D_r1", "D", self.loss_r1, every=c.r1_every))
        return tuple(phases)

    def stages(self) -> tuple[Stage, ...]:
        c, r = self.config, self.shape.resolution
        batch, lr = c.batch.get(r, self.default_batch), c.lr_by_resolution.get(r)
        images, phases = round(c.kimg * 1000), self.phases()
        return (Stage(f"{r}", images, r, batch, phases, lr=lr, milestone=True),)

    @torch.no_grad()
    def update_statistics(self, clock: Clock) -> None:
        """Update the mean w and the mean path length by what the last step measured, and set the
        strength of the augmentation."""
        c = self.config
        mean_w: Tensor = self.generator.mapping.w_avg  # type: ignore[union-attr,assignment]
        mean, some = self.pending_w.mean()
        mean_w.lerp_(mean, some * (1 - c.w_mean_decay))
        mean, some = self.pending_length.mean()
        self.path_length_mean.lerp_(mean, some * c.path_length_decay)
        if c.augment == "ada" and clock.step % c.augment_every == 0:
            p, signs = self.augment_p, self.pending_sign
            images = clock.nimg - self.augment_nimg
            target, kimg = c.augment_target, c.augment_kimg
            p.copy_(next_strength(p, signs.total, signs.count, images, target, kimg))
            signs.clear()
            self.augment_nimg.fill_(clock.nimg)

    def running_buffers(self) -> list[Tensor]:
        parts = (self.pending_w, self.pending_length, self.pending_sign)
        return [b for part in parts for b in part.buffers()]

    def status(self) -> dict[str, float]:
        return {"resolution": float(self.shape.resolution)}

    def statistics(self) -> dict[str, float]:
        found = {}
        if self.path_every:
            found["path_length_mean"] = float(self.path_length_mean)
        if self.config.augment != "none":
            found["augment_p"] = float(self.augment_p)
        return found

    # ---- from latents to images ----------------------------------------------------------------

    def styles(self, z: Tensor, label: Tensor | None) -> Tensor:
        """w [N, w_dim] of z [N, z_dim] and, if conditional, labels int64 [N]."""
        w: Tensor = self.generator.mapping(z, label)  # type: ignore[operator]
        return w

    def truncate(
        self, ws: Tensor, psi: float, cutoff: int | None = None, label: Tensor | None = None
    ) -> Tensor:
        """mean + psi (w - mean), in the first `cutoff` layers or all: arXiv 1812.04948, appendix B.

        With labels int64 [N], the mean is the one of each image's class, unless the setting
        `truncate_to` is "all". The mean over all classes suits conditional networks less: it lies
        between the classes, and an S that is drawn to it becomes an 8.
        """
        mean: Tensor = self.generator.mapping.w_avg  # type: ignore[union-attr,assignment]
        if label is not None and self.config.truncate_to == "class":
            mean = self.class_means(label)[:, None]  # [N, 1, w_dim]
        drawn = torch.lerp(mean.to(ws), ws, psi)
        return drawn if cutoff is None else torch.cat([drawn[:, :cutoff], ws[:, cutoff:]], dim=1)

    def synthesise(self, ws: Tensor, noise: Noise) -> Tensor:
        """Images [N, C, R, R] of ws [N, num_ws, w_dim]."""
        image: Tensor = self.generator(ws, noise)
        return image

    def sample(self, z: Tensor, label: Tensor | None, truncation: float = 1.0) -> Tensor:
        """Images made with the stored noise maps: each depends on its latent, its label and the
        truncation alone."""
        ws = self.styles(z, label)[:, None].expand(-1, self.num_ws, -1)
        if truncation != 1:
            ws = self.truncate(ws, truncation, label=label)
        return self.synthesise(ws, "const")

    @torch.no_grad()
    def class_means(self, label: Tensor) -> Tensor:
        """The mean w [N, w_dim] of each label int64 [N], always over the same latents."""
        places = torch.arange(CLASS_MEAN_LATENTS, device=label.device)
        z = BatchRandom(0, "class mean", places).normal(self.z_dim)
        classes, of = label.unique(return_inverse=True)
        means = [self.styles(z, c.expand(len(z))).mean(dim=0) for c in classes]
        return torch.stack(means)[of]

    def layers_in_use(self) -> int:
        """The number of layers, and so of styles, that make images of the present resolution."""
        return self.num_ws

    def mix_styles(self, label: Tensor | None, rng: BatchRandom) -> Tensor:
        """Draw styles ws [N, num_ws, w_dim]. A share `mixing` of the images has the styles of a
        second latent in its later layers: arXiv 1812.04948, section 3.1."""
        z = rng.normal(self.z_dim)
        if not self.config.mixing:
            return self.styles(z, label)[:, None].expand(-1, self.num_ws, -1)
        both = None if label is None else torch.cat([label, label])
        w, other = self.styles(torch.cat([z, rng.normal(self.z_dim)]), both).chunk(2)
        crossover = 1 + rng.integers(self.layers_in_use() - 1)  # [N]
        crossover = torch.where(rng.uniform() < self.config.mixing, crossover, self.num_ws)
        layers = torch.arange(self.num_ws, device=w.device)
        own = (layers < crossover[:, None])[:, :, None]  # [N, num_ws, 1]
        return torch.where(own, w[:, None], other[:, None])

    # ---- losses --------------------------------------------------------------------------------

    def prepare_reals(self, image: Tensor) -> Tensor:
        """Real images as D sees them, before augmentation; networks that grow override this."""
        return image

    def logits(self, image: Tensor, label: Tensor | None, rng: BatchRandom) -> Tensor:
        """D's logits [N] of images [N, C, R, R], which are augmented first if that is set."""
        c = self.config
        if c.augment != "none":
            image = augment(image, self.augment_p, rng, c.augment_groups)
        return self.discriminate(image, label)

    def discriminate(self, image: Tensor, label: Tensor | None) -> Tensor:
        """D's logits [N] of images [N, C, R, R], without augmentation."""
        logits: Tensor = self.discriminator(image, label)
        return logits

    def loss_g(self, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """G learns to make images that D takes for real."""
        label = batch.get("label")
        ws = self.mix_styles(label, rng)
        self.pending_w.add(ws[:, 0].mean(dim=0))
        image = self.synthesise(ws, rng)
        logit = self.logits(image, label, rng)
        leaves = {"fake": image.detach()} if self.shared_fakes else {}
        found = Losses({"G": losses.nonsaturating_g(logit)}, leaves=leaves)
        return found | self.loss_path(batch, rng, clock) if self.path_every == 1 else found

    def loss_path(self, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """Path-length regularisation on a part of the batch: arXiv 1912.04958, section 3.2."""
        c, label = self.config, batch.get("label")
        chosen = slice(None, None, c.path_length_shrink)  # workers' shares begin at multiples of it
        rng = rng.select(chosen)
        ws = self.mix_styles(None if label is None else label[chosen], rng)
        image = self.synthesise(ws, rng)
        noise = rng.normal(*image.shape[1:]).to(image) / math.sqrt(image[0, 0].numel())
        lengths = path_lengths(image, noise, ws)  # [N / shrink]
        self.pending_length.add(lengths.mean())
        deviation = (lengths - self.path_length_mean).square().mean()
        term = c.path_length_weight * deviation
        return Losses({"path": term}, {"path_length": lengths.detach().mean()})

    def loss_d(self, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """D tells reals from fakes of the same classes."""
        label = batch.get("label")
        real = self.prepare_reals(batch["image"])
        if self.shared_fakes:
            fake = batch["fake"]
        else:
            with torch.no_grad():
                fake = self.synthesise(self.mix_styles(label, rng), rng)
        fake = fake.to(real.dtype)
        both = None if label is None else torch.cat([label, label])
        logits = self.logits(torch.cat([real, fake]), both, rng.repeat(2))
        real_logit, fake_logit = logits.chunk(2)
        self.pending_sign.add(real_logit.sign().mean())
        metrics = losses.mean_logits(real_logit, fake_logit)
        metrics["logit/real_sign"] = real_logit.detach().sign().mean()
        found = Losses({"D": losses.logistic_d(real_logit, fake_logit)}, metrics)
        return found | self.loss_r1(batch, rng, clock) if self.r1_every == 1 else found

    def loss_r1(self, batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
        """The R1 penalty on real images, augmented if that is set."""
        penalty = losses.r1_penalty(
            lambda x: self.logits(x, batch.get("label"), rng), self.prepare_reals(batch["image"])
        )
        return Losses({"r1": self.config.r1_gamma * penalty})
