"""The interface between families and trainer: the trainer knows what a family declares here.

A family is an `Adversary`: its networks are submodules, `stages()` says what is trained when, and
each `Phase` names a loss. The trainer does everything else: optimizers, gradient averaging, mixed
precision, accumulation, moving averages, clocks, checkpoints, scores. The protocols `Generates`,
`Upscales`, `Translates` and `StyleSpace` say what a family can do; code that needs an ability asks
for its protocol. Nothing in this file knows a family by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from gan_train.errors import UserError
from gan_train.rng import BatchRandom

Batch = dict[str, Tensor]
"""One worker's share of a global batch: `image` float [N, C, H, W] in [-1, 1], `label` int64 [N].
For super-resolution it also has `low`, the image downsampled by `scale`; for translation it has
`other`, images of domain B. Tensors that an earlier phase leaves for a later one are here, too."""

Task = Literal["generate", "upscale", "translate"]
"""What the networks make: images from latents, larger images, or images of the other domain."""
Domain = Literal["A", "B"]
DOMAINS: tuple[Domain, Domain] = ("A", "B")


@dataclass(frozen=True)
class Clock:
    """The progress of training: `step` counts steps, `nimg` the real images over all workers."""

    step: int = 0
    nimg: int = 0


@dataclass(frozen=True)
class ImageShape:
    """The properties of the data that networks are built for. `classes` is empty without labels."""

    channels: int
    resolution: int
    classes: tuple[str, ...] = ()

    def check_classes(self, conditional: bool) -> None:
        """Raise UserError where `conditional` is true and the data has no classes."""
        if conditional and not self.classes:
            raise UserError(
                "family.conditional is true but the data has no classes; "
                "set data.classes to `folder` or family.conditional to false"
            )


@dataclass
class Losses:
    """What the loss of a phase returns. `terms` are weighted scalars, each a mean over N samples;
    their sum is minimised. `metrics` are detached scalars (or [N]) that are only logged. `leaves`
    are detached tensors for later phases of the same step, under the names that the phase
    declares."""

    terms: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    leaves: dict[str, Tensor] = field(default_factory=dict)

    def __or__(self, other: Losses) -> Losses:
        """The terms, metrics and leaves of both losses together."""
        return Losses(
            self.terms | other.terms, self.metrics | other.metrics, self.leaves | other.leaves
        )


PhaseLoss = Callable[[Batch, BatchRandom, Clock], Losses]


@dataclass(frozen=True)
class OptimizerSettings:
    """The settings of an optimizer that may change from one step to the next."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.0, 0.99)
    """The decay rates of Adam's two moments. SGD does not use them."""
    momentum: float = 0.0
    """The momentum of SGD. Adam does not use it."""
    weight_decay: float = 0.0
    """This multiple of the weights is added to their gradient (L2 regularisation)."""
    clip_norm: float | None = None
    """When the L2 norm of all gradients together exceeds this, they are scaled down to it: Pascanu
    et al. 2012 (arXiv 1211.5063), algorithm 1."""


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
    1912.04958, appendix B); the trainer multiplies its terms by 16. `leaves` names the tensors that
    its loss leaves for later phases of the same step; `takes` names the tensors of earlier phases
    that its loss finds in its batch.
    """

    name: str
    optimizer: str
    loss: PhaseLoss
    every: int = 1
    leaves: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """A part of training, `nimg` images long, in which resolution, batch and phases stay the same.

    `batch` is the global batch. With `fade`, the highest level fades in during the stage; `lr`
    replaces the optimizers' rate; `fresh_optimizers` drops their moments at the beginning;
    `milestone` asks for a checkpoint (and so a score) at the end. Raises ValueError for a phase
    that takes a tensor which no earlier phase leaves at every step where it is due.
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
    """A GAN family. Subclasses register their networks as submodules, override the methods of this
    class, and offer one of the protocols `Generates`, `Upscales` and `Translates`."""

    shape: ImageShape
    averaged: tuple[str, ...] = ("generator",)
    """Names of the submodules that have an exponential moving average. Images are made with these
    alone: a copy of the family that only makes images has no other submodules."""
    grain: int = 1
    """How many neighbouring samples must stay on one worker, such as the group of a minibatch
    standard deviation."""

    def optimizers(self) -> Mapping[str, OptimizerSpec]:
        """Optimizers by name. The trainer asks once."""
        raise NotImplementedError

    def stages(self) -> tuple[Stage, ...]:
        """The schedule, in order. The trainer asks once."""
        raise NotImplementedError

    def settings(
        self, optimizer: str, declared: OptimizerSettings, stage: Stage, clock: Clock
    ) -> OptimizerSettings:
        """The settings of the named optimizer at this step. Unless a family overrides this, they
        are the `declared` ones, with the learning rate of the stage where the stage has one."""
        return declared if stage.lr is None else replace(declared, lr=stage.lr)

    def advance(self, clock: Clock) -> None:
        """Set what depends on the progress alone, such as resolution and fade. It is called before
        every step, and when networks are read from a checkpoint to make images."""

    def status(self) -> dict[str, float]:
        """The values that `advance` has set, for the log: resolution, alpha."""
        return {}

    def update_statistics(self, clock: Clock) -> None:
        """Update the running statistics by what the losses of the last step measured. It is called
        before every step of training, and never otherwise."""

    def statistics(self) -> dict[str, float]:
        """Running statistics for the log, such as the strength of an augmentation."""
        return {}

    def running_buffers(self) -> list[Tensor]:
        """The buffers that are averaged over the workers after every step: running statistics."""
        return [b for b in self.buffers() if b.is_floating_point()]


# ---- what adversaries can do -------------------------------------------------------------------


@runtime_checkable
class Generates(Protocol):
    """An adversary that makes images from latents."""

    z_dim: int
    conditional: bool
    """True when `sample` needs a label for every image."""

    def sample(self, z: Tensor, label: Tensor | None, truncation: float = 1.0) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] from latents [N, z_dim] ~ N(0, 1) and labels int64 [N].

        `truncation` below 1 trades variety for typicality; 1 leaves the distribution as it is.
        A family without truncation raises UserError for any value but 1.
        """


@runtime_checkable
class Upscales(Protocol):
    """An adversary that makes larger images from images."""

    scale: int
    """The factor by which both sides of an image grow."""
    reach: int
    """The greatest distance, in pixels of the input, from which an output pixel is influenced."""

    def upscale(self, low: Tensor) -> Tensor:
        """Images [N, C, scale H, scale W] from images [N, C, H, W] of any size, all in [-1, 1]."""


@runtime_checkable
class Translates(Protocol):
    """An adversary that makes images of one domain from images of the other."""

    paired: bool
    """True when a loss needs `other` to be the true partner of `image`."""

    def translate(self, image: Tensor, to: Domain) -> Tensor:
        """Images [N, C, H, W] of the domain `to` from images of the other one, in [-1, 1]."""


def task_of(adversary: Adversary) -> Task:
    """The task of an adversary, by the protocol that it offers. Raises TypeError without one."""
    if isinstance(adversary, Generates):
        return "generate"
    if isinstance(adversary, Upscales):
        return "upscale"
    if isinstance(adversary, Translates):
        return "translate"
    raise TypeError(f"{type(adversary).__name__} neither generates nor upscales nor translates")


Noise = Literal["const", "none"] | BatchRandom
"""The noise that a generator adds to each pixel: its stored maps ("const"), none, or maps that
random numbers give for every image."""


@runtime_checkable
class StyleSpace(Protocol):
    """An adversary that turns a latent z into a style w, and makes an image from one w for every
    layer. This allows truncation by layer, mixing, interpolation in w, projection, path lengths."""

    z_dim: int
    w_dim: int
    num_ws: int

    def styles(self, z: Tensor, label: Tensor | None) -> Tensor:
        """w [N, w_dim] of latents [N, z_dim] and, if conditional, labels int64 [N]."""

    def truncate(
        self, ws: Tensor, psi: float, cutoff: int | None = None, label: Tensor | None = None
    ) -> Tensor:
        """ws [N, num_ws, w_dim] drawn to a mean w: mean + psi (w - mean), in the first `cutoff`
        layers or in all. With labels int64 [N] it may be the mean of each image's class."""

    def synthesise(self, ws: Tensor, noise: Noise) -> Tensor:
        """Images [N, C, H, W], about in [-1, 1], from ws [N, num_ws, w_dim]."""


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
    """An optimizer `D` of `discriminator` and an optimizer `G` of `generator`, set alike."""
    return {
        "D": OptimizerSpec(("discriminator",), settings, kind),
        "G": OptimizerSpec(("generator",), settings, kind),
    }


def refuse_truncation(truncation: float, family: str, why: str) -> None:
    """Raise UserError unless `truncation` is 1, for a family that has none."""
    if truncation != 1:
        raise UserError(f"{family} has no truncation: {why}; use 1")
