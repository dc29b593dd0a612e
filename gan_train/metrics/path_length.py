"""Perceptual path length: how much images change along a straight way between two latents.

Karras et al. 2018 (arXiv 1812.04948), section 4. A short step of EPSILON is made on the way from
one random latent to another, and the squared perceptual distance of the two images is divided by
EPSILON^2; the mean over many paths is the path length, lower where nothing comes and goes on the
way. The measures:

    ppl_w_full, ppl_w_end    the way is a line in w; the step begins anywhere on it, or at its start
    ppl_z_full, ppl_z_end    the way is an arc in z, on the sphere; the step begins likewise

A name ends in the perceptual distance's suffix. Both ends of a step have the same class, drawn as
often as the data has it, and the same noise, drawn for every path; styles are not truncated. Paths
are functions of the seed and their place, and groups of neighbours stay on one rank, so the number
of ranks changes no bit, and the batch nothing but rounding.

The two images differ in their fourth digit, of which float32 has seven. Interpolation
is done in float64, networks run as they are, without TF32. On small networks (ProGAN, StyleGAN2; in
EfficientNet's distance) lengths of single paths were off by up to 1% against float64, means of a
dozen by up to 0.2%; images that do not change at all get 5e-4 instead of 0.
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
from gan_train.metrics.perceptual import Perceptual, distance
from gan_train.metrics.protocol import Protocol
from gan_train.metrics.real import RankShare
from gan_train.nn.collectives import all_sum
from gan_train.rng import BatchRandom

EPSILON = 1e-4
LARGEST_SIDE = 256
"""Larger images are averaged over squares to this size, in pixels."""

Way = Callable[[Tensor], Tensor]
"""A function from places t float64 [n] in [0, 1] to images [n, C, H, W]: image i lies at t[i] on
path i."""


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Points [n, D] at t [n] on the great circle from a to b [n, D], both scaled to length sqrt(D).

    That is the length of most of N(0, 1)^D, for which generators are trained; one that normalises
    its latents cannot tell. The angle runs evenly (Shoemake 1985).
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


def trimmed_mean(lengths: Tensor) -> float:
    """The mean of lengths [n] from the 1st to the 99th percentile, both included.

    A percentile that falls between two values is the lower one for the 1st, the higher one for the
    99th: up to n = 100 nothing is dropped. NaN if any length is no finite number.
    """
    if not lengths.isfinite().all():
        return float("nan")
    ordered, last = lengths.sort().values, len(lengths) - 1
    low, high = ordered[last // 100], ordered[-(-99 * last // 100)]
    return float(ordered[(ordered >= low) & (ordered <= high)].mean())


def at_resolution(images: Tensor, resolution: int) -> Tensor:
    """Images, whose side is `resolution` or a lower power of two, at that resolution, but at most
    at LARGEST_SIDE."""
    side = images.shape[-1]
    if side < resolution:  # a generator that still grows: pixels are repeated, as for other scores
        images = F.interpolate(images, scale_factor=resolution // side, mode="nearest")
    factor = resolution // LARGEST_SIDE
    return F.avg_pool2d(images, factor) if factor > 1 else images


class PathLengths:
    """Path lengths of one adversary, whose weights may change.

    `kinds` are the ways: `w_full`, `w_end`, `z_full`, `z_end`; `images` is the number of paths.
    `class_counts` int64 [K] says how often the data has each class. Raises UserError where the
    family has no w and a measure in w is asked for.
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
        """What the numbers depend on beside the generator, to be stored with them."""
        return {
            "path_length_images": self._images,
            "path_length_epsilon": f"{EPSILON:g}",
            "perceptual": self._perceptual.name,
            "perceptual_resize": self._perceptual.resize,
            "perceptual_weights": self._perceptual.weights_sha256,
        }

    @torch.inference_mode()
    def measure(self) -> dict[str, float]:
        """Path lengths by name. Collective; the same on every rank."""
        with _without_tf32():
            return {
                f"ppl_{kind}{self._perceptual.suffix}": trimmed_mean(self._lengths(kind))
                for kind in self._kinds
            }

    def _lengths(self, kind: str) -> Tensor:
        """float64 [images]: the lengths that all ranks measured, by place."""
        count, device = self._images, self._share.device
        lengths = torch.zeros(count, dtype=torch.float64, device=device)
        for positions in self._positions(count):
            way, t = self._way(kind, positions.to(device))
            lengths[positions] = path_lengths(self._perceptual, way, t).to(device)
        all_sum(lengths)  # each place is filled on one rank and zero on the others
        return lengths

    def _positions(self, count: int) -> Iterator[Tensor]:
        """This rank's places among `count`, never more at a time than a batch has pairs.

        The places are cut within the groups that stay together, so that it does not matter how the
        groups are shared out.
        """
        for group in own_positions(count, self._share.rank, self._share.world_size, GROUP):
            yield from group.split(max(1, self._share.batch // 2))

    def _way(self, kind: str, positions: Tensor) -> tuple[Way, Tensor]:
        """The paths at these places int64 [n], and where on them the steps begin [n]."""
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
            # made anew from the same seed: both ends of a step get the same maps
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
    """Let a GPU compute products and convolutions in full float32: TF32 has three digits, and a
    step begins at the fourth."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before
