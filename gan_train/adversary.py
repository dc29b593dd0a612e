"""THE SEAM: what a GAN family declares, and all that the trainer knows of it.

A family is an `Adversary`: its networks are submodules, `stages()` says what is
trained when, and each `Phase` names a loss. The trainer does everything else:
optimizers, gradient averaging, mixed precision, accumulation, moving averages,
clocks, checkpoints, scores. Nothing in this file knows a family by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import Field
from torch import Tensor, nn

from gan_train.errors import UserError
from gan_train.rng import BatchRandom

Batch = dict[str, Tensor]
"""One rank's share of a global batch: `image` float [N, C, H, W] in [-1, 1], `label` int64 [N].
Super-resolution has `low`, the image shrunk by `scale`; translation has `other`, images of part B.
A loss may add keys for a later phase of the same step (CycleGAN's fakes)."""

Task = Literal["generate", "upscale", "translate"]
"""What the networks make: images of latents; larger images of images; images of another kind."""
Domain = Literal["A", "B"]
DOMAINS: tuple[Domain, Domain] = ("A", "B")


@dataclass(frozen=True)
class Clock:
    """Progress. `step` counts updates; `nimg` counts real images seen by all ranks."""

    step: int = 0
    nimg: int = 0


@dataclass(frozen=True)
class ImageShape:
    """What the data set fixes for the networks. `classes` is empty for unlabelled data."""

    channels: int
    resolution: int
    classes: tuple[str, ...] = ()

    def check_classes(self, conditional: bool) -> None:
        """Raise UserError for a family that is to be conditional on data without classes."""
        if conditional and not self.classes:
            raise UserError(
                "family.conditional is true but the data has no classes; "
                "set data.classes to `folder` or family.conditional to false"
            )


@dataclass
class Losses:
    """What a phase returns: `terms` are weighted scalars, each a mean over the N samples given,
    and their sum is minimised; `metrics` are detached scalars (or [N]) that are only logged."""

    terms: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)

    def __or__(self, other: Losses) -> Losses:
        """The terms and metrics of both."""
        return Losses(self.terms | other.terms, self.metrics | other.metrics)


PhaseLoss = Callable[[Batch, BatchRandom, Clock], Losses]

Momentum = Annotated[float, Field(ge=0, lt=1)]
"""Of sgd, as a setting of a family."""


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer over the parameters of the named networks (attributes of the Adversary)."""

    nets: tuple[str, ...]
    kind: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.0, 0.99)
    eps: float = 1e-8
    momentum: tuple[float, float] = (0.0, 0.0)
    """Of sgd, at the start and at the end of the schedule."""


@dataclass(frozen=True)
class Phase:
    """One optimizer step: `optimizer` moves down `loss` at every `every`-th step (lazy
    regularisation: `every=16`, the loss term multiplied by 16 by the family)."""

    name: str
    optimizer: str
    loss: PhaseLoss
    every: int = 1


@dataclass(frozen=True)
class Stage:
    """A span of `nimg` images in which resolution, batch and phases stay the same.

    `batch` is the global batch, over all ranks. `fresh_optimizers` drops the optimizers' moments
    on entry; `milestone` asks for a checkpoint (and so a score) at the end.
    """

    name: str
    nimg: int
    resolution: int
    batch: int
    phases: tuple[Phase, ...]
    fresh_optimizers: bool = False
    milestone: bool = False


class Adversary(nn.Module):
    """A GAN family. Subclasses register their networks as submodules and override what follows."""

    shape: ImageShape
    task: Task = "generate"
    paired: bool = False
    """True when `other` must be the true partner of `image`."""
    scale: int = 1
    """How much larger the images get that `upscale` makes."""
    reach: int = 0
    """How far a pixel of `upscale`'s output looks, in pixels of its input."""
    z_dim: int = 0
    conditional: bool = False
    """True when `sample` needs a class per image."""
    averaged: tuple[str, ...] = ("generator",)
    """Names of the submodules that keep an exponential moving average."""
    grain: int = 1
    """Neighbouring samples that must stay on one rank (minibatch standard deviation: its group)."""

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """Optimizers by name."""
        raise NotImplementedError

    def stages(self) -> tuple[Stage, ...]:
        """The schedule, in order."""
        raise NotImplementedError

    def learning_rate(self, optimizer: str, stage: Stage, clock: Clock) -> float:
        """The rate of the named optimizer now; constant unless a family says otherwise."""
        return self.optimizers()[optimizer].lr

    def momentum(self, optimizer: str, clock: Clock) -> float:
        """The momentum of the named optimizer (of kind sgd) now: linear over the schedule."""
        first, last = self.optimizers()[optimizer].momentum
        whole = sum(stage.nimg for stage in self.stages())
        return first + (last - first) * min(1.0, clock.nimg / whole)

    def advance(self, clock: Clock) -> None:
        """Set what depends on progress alone (resolution, fade). Called before every step, and
        once after loading weights, so that `sample` knows where training stood."""

    def status(self) -> dict[str, float]:
        """What to log beside the losses: resolution, alpha, the strength of an augmentation."""
        return {}

    def running_buffers(self) -> list[Tensor]:
        """Statistics that training keeps in buffers: averaged over the workers after every step."""
        return [b for b in self.buffers() if b.is_floating_point()]

    def sample(self, z: Tensor, label: Tensor | None, truncation: float = 1.0) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] from latents [N, z_dim] ~ N(0, 1) and labels int64 [N].

        `truncation` below 1 trades variety for typicality; 1 leaves the distribution as it is.
        """
        raise NotImplementedError

    def upscale(self, low: Tensor) -> Tensor:
        """Images [N, C, scale H, scale W] of images [N, C, H, W], both in [-1, 1], of any size."""
        raise NotImplementedError

    def translate(self, image: Tensor, to: Domain) -> Tensor:
        """Images [N, C, H, W] of the domain `to` from images of the other one, in [-1, 1]."""
        raise NotImplementedError


Noise = Literal["const", "none"] | BatchRandom
"""What per-pixel noise a generator adds: its stored maps, none, or fresh maps for every image."""


@runtime_checkable
class StyleSpace(Protocol):
    """What an adversary offers whose latents z become styles w, one of them for every layer:
    truncation by layer, mixing, interpolation in w, projection, path lengths."""

    z_dim: int
    w_dim: int
    num_ws: int

    def styles(self, z: Tensor, label: Tensor | None) -> Tensor:
        """w [N, w_dim] of latents [N, z_dim] and, if conditional, classes int64 [N]."""

    def truncate(
        self, ws: Tensor, psi: float, cutoff: int | None = None, label: Tensor | None = None
    ) -> Tensor:
        """ws [N, num_ws, w_dim] drawn to the mean w, or to that of their classes int64 [N]:
        mean + psi (w - mean), in the first `cutoff` layers, or in all."""

    def synthesise(self, ws: Tensor, noise: Noise) -> Tensor:
        """Images [N, C, H, W], about [-1, 1], of ws [N, num_ws, w_dim]."""
