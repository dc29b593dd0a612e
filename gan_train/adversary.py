"""The seam between families and trainer: what a GAN family declares, all that the trainer knows.

A family is an `Adversary`: its networks are submodules, `stages()` says what is trained when, and
each `Phase` names a loss. The trainer does everything else: optimizers, gradient averaging, mixed
precision, accumulation, moving averages, clocks, checkpoints, scores. What a family can do is a
protocol (`Generates`, `Upscales`, `Translates`, `StyleSpace`), for which the code that uses it
asks. Nothing in this file knows a family by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from gan_train.errors import UserError
from gan_train.rng import BatchRandom

Batch = dict[str, Tensor]
"""One rank's share of a global batch: `image` float [N, C, H, W] in [-1, 1], `label` int64 [N].
Super-resolution has `low`, the image downsampled by `scale`; translation has `other`, images of
part B. A phase that takes what an earlier one left finds it here under its name."""

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
    """What a phase returns. `terms` are weighted scalars, each a mean over the N samples given;
    their sum is minimised. `metrics` are detached scalars (or [N]) that are only logged. `leaves`
    are detached tensors for later phases of the same step, under the names that the phase
    declares."""

    terms: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    leaves: dict[str, Tensor] = field(default_factory=dict)

    def __or__(self, other: Losses) -> Losses:
        """The terms, metrics and leaves of both."""
        return Losses(
            self.terms | other.terms, self.metrics | other.metrics, self.leaves | other.leaves
        )


PhaseLoss = Callable[[Batch, BatchRandom, Clock], Losses]


@dataclass(frozen=True)
class OptimizerSettings:
    """What an optimizer may change from one step to the next."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.0, 0.99)
    """The decay of Adam's two moments; SGD has none."""
    momentum: float = 0.0
    """The momentum of SGD; Adam has none."""
    weight_decay: float = 0.0
    """This multiple of the weights is added to their gradient (L2 regularisation)."""
    clip_norm: float | None = None
    """Gradients of a greater L2 norm, taken over all parameters, are scaled down to it: Pascanu et
    al. 2012 (arXiv 1211.5063), algorithm 1."""


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer over the parameters of the named networks (attributes of the Adversary), and
    the settings that it keeps unless `Adversary.settings` schedules them."""

    nets: tuple[str, ...]
    settings: OptimizerSettings = OptimizerSettings()
    kind: Literal["adam", "sgd"] = "adam"
    eps: float = 1e-8


@dataclass(frozen=True)
class Phase:
    """One optimizer step: `optimizer` moves its networks down `loss`.

    With `every=16` it is due at every 16th step (lazy regularisation: Karras et al. 2019, arXiv
    1912.04958, appendix B); the trainer multiplies its terms by 16. `leaves` names what its loss
    leaves for later phases of the same step, and `takes` what it finds in its batch of that.
    """

    name: str
    optimizer: str
    loss: PhaseLoss
    every: int = 1
    leaves: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """A span of `nimg` images in which resolution, batch and phases stay the same.

    `batch` is the global batch, over all ranks. `fade` tells that the highest level fades in
    meanwhile; `lr` replaces the optimizers' rate; `fresh_optimizers` drops their moments on entry;
    `milestone` asks for a checkpoint (and so a score) at the end. Raises ValueError for a phase
    that takes what no earlier phase has left whenever it is due.
    """

    name: str
    nimg: int
    resolution: int
    batch: int
    phases: tuple[Phase, ...]
    fade: bool = False
    lr: float | None = None
    fresh_optimizers: bool = False
    milestone: bool = False

    def __post_init__(self) -> None:
        for place, phase in enumerate(self.phases):
            earlier = [p for p in self.phases[:place] if phase.every % p.every == 0]
            missing = set(phase.takes).difference(*(p.leaves for p in earlier))
            if missing:
                raise ValueError(
                    f"stage {self.name}: phase {phase.name} takes {sorted(missing)}, which no "
                    "phase before it leaves at each of its steps"
                )


class Adversary(nn.Module):
    """A GAN family. Subclasses register their networks as submodules, override what follows, and
    offer one of the capabilities below: `Generates`, `Upscales` or `Translates`."""

    shape: ImageShape
    averaged: tuple[str, ...] = ("generator",)
    """Names of the submodules that keep an exponential moving average. They are all that images
    are made with: copies of the family that only make images have no others."""
    grain: int = 1
    """Neighbouring samples that must stay on one rank (minibatch standard deviation: its group)."""

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """Optimizers by name. The trainer asks once."""
        raise NotImplementedError

    def stages(self) -> tuple[Stage, ...]:
        """The schedule, in order. The trainer asks once."""
        raise NotImplementedError

    def settings(
        self, optimizer: str, declared: OptimizerSettings, stage: Stage, clock: Clock
    ) -> OptimizerSettings:
        """The settings of the named optimizer at this step: as `declared`, at the rate of the
        stage where it has one, unless a family schedules them."""
        return declared if stage.lr is None else replace(declared, lr=stage.lr)

    def advance(self, clock: Clock) -> None:
        """Set what depends on progress alone (resolution, fade). Called before every step, and
        once after loading weights, so that images are made as training stood."""

    def status(self) -> dict[str, float]:
        """What `advance` has set, to be logged: resolution, alpha."""
        return {}

    def update_statistics(self, clock: Clock) -> None:
        """Take what the losses of the last step measured into the running statistics. Called
        before every step, in training alone."""

    def statistics(self) -> dict[str, float]:
        """Running statistics to be logged: the strength of an augmentation."""
        return {}

    def running_buffers(self) -> list[Tensor]:
        """Statistics that training keeps in buffers: averaged over the workers after every step."""
        return [b for b in self.buffers() if b.is_floating_point()]


# ---- what adversaries can do -------------------------------------------------------------------


@runtime_checkable
class Generates(Protocol):
    """What an adversary offers that makes images of latents."""

    z_dim: int
    conditional: bool
    """True when `sample` needs a class per image."""

    def sample(self, z: Tensor, label: Tensor | None, truncation: float = 1.0) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] from latents [N, z_dim] ~ N(0, 1) and labels int64 [N].

        `truncation` below 1 trades variety for typicality; 1 leaves the distribution as it is.
        Raises UserError for another value where a family has no truncation.
        """


@runtime_checkable
class Upscales(Protocol):
    """What an adversary offers that makes larger images of images."""

    scale: int
    """How much larger the images get."""
    reach: int
    """How far a pixel of the output looks, in pixels of the input."""

    def upscale(self, low: Tensor) -> Tensor:
        """Images [N, C, scale H, scale W] of images [N, C, H, W], both in [-1, 1], of any size."""


@runtime_checkable
class Translates(Protocol):
    """What an adversary offers that makes images of one domain from images of the other."""

    paired: bool
    """True when a loss needs `other` to be the true partner of `image`."""

    def translate(self, image: Tensor, to: Domain) -> Tensor:
        """Images [N, C, H, W] of the domain `to` from images of the other one, in [-1, 1]."""


def task_of(adversary: Adversary) -> Task:
    """The task by the capability that the adversary offers. Raises TypeError if it has none."""
    if isinstance(adversary, Generates):
        return "generate"
    if isinstance(adversary, Upscales):
        return "upscale"
    if isinstance(adversary, Translates):
        return "translate"
    raise TypeError(f"{type(adversary).__name__} neither generates nor upscales nor translates")


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


# ---- what families declare alike ---------------------------------------------------------------


def single_stage(
    name: str, shape: ImageShape, batch: int, kimg: float, *phases: Phase, milestone: bool = True
) -> tuple[Stage, ...]:
    """The schedule of a family that trains at full size from the first image to the last."""
    images = round(kimg * 1000)
    return (Stage(name, images, shape.resolution, batch, phases, milestone=milestone),)


def pair_of_optimizers(
    settings: OptimizerSettings, kind: Literal["adam", "sgd"] = "adam"
) -> dict[str, OptimizerSpec]:
    """Optimizers `D` and `G`, with the same settings, of `discriminator` and `generator`."""
    return {
        "D": OptimizerSpec(("discriminator",), settings, kind),
        "G": OptimizerSpec(("generator",), settings, kind),
    }


def refuse_truncation(truncation: float, family: str, why: str) -> None:
    """Raise UserError unless `truncation` is 1, for a family that has none."""
    if truncation != 1:
        raise UserError(f"{family} has no truncation: {why}; use 1")
