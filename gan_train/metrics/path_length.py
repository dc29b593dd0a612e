"""Perceptual path length: how much images change along a straight way between two latents.

Karras et al. 2018 (arXiv 1812.04948), section 4. A short step of EPSILON is made on the way from
one random latent to another, and the squared perceptual distance between the images at its two ends
is divided by EPSILON^2. The path length is the mean over many ways; it is lower where images change
evenly, and nothing appears and vanishes on the way. The measures:

    ppl_w_full, ppl_w_end    the way is a line in w; the step begins anywhere on it, or at its start
    ppl_z_full, ppl_z_end    the way is an arc in z, on the sphere; the step begins likewise

The suffix of the perceptual distance is appended to these names. Both ends of a step have the same
class, drawn as often as the data set has it, and the same noise, drawn for every path; styles are
not truncated. Paths are functions of the seed and their place, and groups of neighbours stay on one
worker. So the number of workers changes no bit of the result, and the batch only the rounding.

The two images of a step differ in the fourth of the seven digits of float32. So the way is computed
in float64, and TF32 is turned off while the networks run. On small networks (ProGAN, StyleGAN2; in
EfficientNet's distance) lengths of single paths differed from a computation in float64 by up to 1%,
means of a dozen by up to 0.2%; images that do not change at all get 5e-4 instead of 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_train.adversary import Adversary, Generates, StyleSpace
from gan_train.errors import UserError
from gan_train.metrics.collect import draw_classes, own_positions
from gan_train.metrics.diversity import GROUP
from gan_train.metrics.estimates import of_influences
from gan_train.metrics.perceptual import Perceptual, distance
from gan_train.metrics.protocol import Protocol
from gan_train.metrics.real import RankShare
from gan_train.metrics.scores import Estimate
from gan_train.nn.collectives import all_sum
from gan_train.rng import BatchRandom

EPSILON = 1e-4
LARGEST_SIDE = 256
"""Larger images are downsampled to this side, in pixels, by the mean over squares."""

Way = Callable[[Tensor], Tensor]
"""n paths: a function from t float64 [n] in [0, 1] to images [n, C, H, W], where image i lies at
t[i] on path i."""


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Points [n, D] at t [n] on the great circle from a to b [n, D], both scaled to length sqrt(D).

    Most latents of N(0, 1)^D, on which generators are trained, have about this length; a generator
    that normalises its latents ignores the length. The angle grows evenly with t (Shoemake 1985).
    """
    start, end = F.normalize(a, dim=1), F.normalize(b, dim=1)
    cosine = (start * end).sum(1, keepdim=True)
    across = end - cosine * start  # the part of the end at right angles to the start
    angle = t[:, None] * torch.atan2(across.norm(dim=1, keepdim=True), cosine)
    point = start * angle.cos() + F.normalize(across, dim=1) * angle.sin()
    return F.normalize(point, dim=1) * a.shape[1] ** 0.5


def path_lengths(perceptual: Perceptual, way: Way, t: Tensor) -> Tensor:
    """float64 [n]: d(image at t, image at t + EPSILON) / EPSILON^2 of n paths, t float64 [n]."""
    return distance(perceptual, way(t), way(t + EPSILON)).double() / EPSILON**2


def trimmed_mean(lengths: Tensor) -> Estimate:
    """The mean of lengths [n] from the 1st to the 99th percentile, both included.

    Where a percentile falls between two values, the 1st takes the lower and the 99th the higher
    one, so up to n = 100 nothing is dropped. NaN if any length is no finite number. The error is
    that of a trimmed mean: lengths that are dropped count there as the nearest one that is not
    (Tukey and McLaughlin 1963).
    """
    if not lengths.isfinite().all():
        return Estimate(float("nan"))
    ordered, last = lengths.sort().values, len(lengths) - 1
    low, high = ordered[last // 100], ordered[-(-99 * last // 100)]
    kept = (lengths >= low) & (lengths <= high)
    share = float(kept.double().mean())
    return of_influences(float(lengths[kept].mean()), lengths.clamp(low, high) / share)


def at_resolution(images: Tensor, resolution: int) -> Tensor:
    """The images at `resolution`, or at LARGEST_SIDE if that is less. They come at `resolution` or,
    from a generator that still grows, at a lower power of two."""
    side = images.shape[-1]
    if side < resolution:  # pixels are repeated, as for other scores
        images = F.interpolate(images, scale_factor=resolution // side, mode="nearest")
    factor = resolution // LARGEST_SIDE
    return F.avg_pool2d(images, factor) if factor > 1 else images


class PathLengths:
    """Path lengths of one adversary, whose weights may change.

    `kinds` are some of `w_full`, `w_end`, `z_full` and `z_end`, as the head of this file describes
    them; `images` is the number of paths. `class_counts` int64 [K] says how often the data set has
    each class. Raises UserError where the family has no w and a measure in w is asked for.
    """

    def __init__(
        self,
        kinds: Sequence[str],
        images: int,
        perceptual: Perceptual,
        adversary: Adversary,
        class_counts: Tensor,
        seed: int,
        share: RankShare,
    ) -> None:
        in_w = [kind for kind in kinds if kind.startswith("w_")]
        if in_w and not isinstance(adversary, StyleSpace):
            raise UserError(
                f"evaluate.path_lengths: {', '.join(in_w)} is measured between styles w, which "
                f"{type(adversary).__name__} does not have; allowed: z_end, z_full"
            )
        assert isinstance(adversary, Generates)
        self._kinds, self._images, self._perceptual = kinds, images, perceptual
        self._adversary, self._class_counts = adversary, class_counts
        self._seed, self._share = seed, share

    def protocol(self) -> Protocol:
        """What path lengths depend on beside the generator, to be stored with them."""
        return {
            "path_length_images": self._images,
            "path_length_epsilon": f"{EPSILON:g}",
            "perceptual": self._perceptual.name,
            "perceptual_resize": self._perceptual.resize,
            "perceptual_weights": self._perceptual.weights_sha256,
        }

    @torch.inference_mode()
    def measure(self) -> dict[str, Estimate]:
        """The path lengths by name. Collective; every worker gets the same."""
        with _without_tf32():
            return {
                f"ppl_{kind}{self._perceptual.suffix}": trimmed_mean(self._lengths(kind))
                for kind in self._kinds
            }

    def _lengths(self, kind: str) -> Tensor:
        """float64 [images]: the length of every path, gathered from all workers."""
        count, device = self._images, self._share.device
        lengths = torch.zeros(count, dtype=torch.float64, device=device)
        for positions in self._positions(count):
            way, t = self._way(kind, positions.to(device))
            lengths[positions] = path_lengths(self._perceptual, way, t).to(device)
        all_sum(lengths)  # each place is filled on one rank and zero on the others
        return lengths

    def _positions(self, count: int) -> Iterator[Tensor]:
        """This rank's places among `count`, at most as many at a time as a batch has pairs.

        Each part lies within one group of neighbours, so that the result does not depend on which
        worker has which groups.
        """
        for group in own_positions(count, self._share.rank, self._share.world_size, GROUP):
            yield from group.split(max(1, self._share.batch // 2))

    def _way(self, kind: str, positions: Tensor) -> tuple[Way, Tensor]:
        """The paths at these places int64 [n], and the points t [n] on them where steps begin."""
        adversary = self._adversary
        dtype = next(adversary.parameters()).dtype
        random = BatchRandom(self._seed, "path_length", positions)
        a, b = (random.normal(adversary.z_dim).double() for _ in range(2))  # [n, z_dim]
        t = random.uniform().double()
        label = draw_classes(random, self._class_counts) if adversary.conditional else None
        if kind.endswith("_end"):
            t = torch.zeros_like(t)

        def images(styles: Tensor) -> Tensor:
            assert isinstance(adversary, StyleSpace)
            # made from the same seed every time: both ends of a step get the same noise maps
            noise = BatchRandom(self._seed, "path_length_noise", positions)
            ws = styles.to(dtype)[:, None].expand(-1, adversary.num_ws, -1)
            return self._sized(adversary.synthesise(ws, noise))

        def through_z(t: Tensor) -> Tensor:
            z = slerp(a, b, t).to(dtype)
            if isinstance(adversary, StyleSpace):
                return images(adversary.styles(z, label))
            return self._sized(adversary.sample(z, label))

        if kind.startswith("z_"):
            return through_z, t
        assert isinstance(adversary, StyleSpace)
        first, second = (adversary.styles(z.to(dtype), label).double() for z in (a, b))
        return lambda t: images(torch.lerp(first, second, t[:, None])), t

    def _sized(self, images: Tensor) -> Tensor:
        return at_resolution(images, self._adversary.shape.resolution)


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Let a GPU compute products and convolutions in full float32: TF32 has three digits, and the
    two images of a step differ in the fourth."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
