"""Projection: the style w whose image looks most like a given picture.

Karras et al. 2019 (arXiv 1912.04958), section 5 and appendix D. One w serves all layers, as in the
paper. The paper also fits the noise maps and regularises them so that they cannot carry the
picture. Here the stored noise maps are used as they are, so that w alone is found: a file of
`w_dim` numbers holds it, and `gan-train generate --w` draws its image again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from gan_train.adversary import StyleSpace
from gan_train.config import DataConfig
from gan_train.data.images import BadImage, Transform, decode, load_image
from gan_train.errors import UserError
from gan_train.files.atomic import write_aside
from gan_train.images.grid import save_grid
from gan_train.images.origin import Origin
from gan_train.images.pixels import to_float, to_uint8_at
from gan_train.inference import Generator
from gan_train.metrics.path_length import at_resolution
from gan_train.metrics.perceptual import Perceptual
from gan_train.rng import BatchRandom
from gan_train.sampling.painter import Look, Painter, labels
from gan_train.sampling.progress import progress_bar

LATENTS = 10_000  # the mean w is taken over the styles of so many latents
_RATE = 0.1
_RATE_UP, _RATE_DOWN = 0.05, 0.25  # shares of the steps in which the rate rises and falls
_NOISE = 0.05  # the noise's deviation at the start, in deviations of w
_NOISE_UNTIL = 0.75  # share of the steps that have noise


@dataclass(frozen=True)
class Projection:
    """The style that was found: `w` float [1, w_dim] and its `image` uint8 [C, R, R].

    `distance_before` is the perceptual distance of the picture to the image of the mean w, and
    `distance_after` its distance to `image`.
    """

    w: Tensor
    image: Tensor
    distance_before: float
    distance_after: float


def picture_for(generator: Generator, file: Path, data: DataConfig) -> Tensor:
    """The picture in a file, as sharding would store it for this generator: uint8 [C, R, R].

    `data` says how it is cropped and resized. Raises UserError if the file is missing, too large or
    no picture.
    """
    channels, resolution = generator.shape.channels, generator.shape.resolution
    transform = replace(
        Transform.of(data), resolution=resolution, colour="grey" if channels == 1 else "rgb"
    )
    if not file.is_file():
        raise UserError(f"{file}: no such picture")
    if file.stat().st_size > transform.max_bytes:
        raise UserError(f"{file}: more than {transform.max_bytes} bytes; name a smaller picture")
    try:
        stored, _ = load_image(file.read_bytes(), transform)
        return torch.from_numpy(decode(stored, channels, resolution).copy())
    except BadImage as error:
        raise UserError(f"{file}: {error}; name another picture") from error


def project(
    generator: Generator, picture: Tensor, perceptual: Perceptual, label: str | None, steps: int
) -> Projection:
    """Find w for a picture uint8 [C, R, R] in `steps` steps of Adam.

    The search starts at the mean w of the class `label`, or of all classes if it is None. Images
    above 256 pixels are compared at 256. Raises UserError for a family without styles, an unknown
    class, and fewer than one step.
    """
    if steps < 1:
        raise UserError(f"--steps {steps}: allowed: 1 or more; 1000 is the paper's")
    space = Painter(generator, Look()).space("project")
    resolution = generator.shape.resolution
    mean, deviation = _centre(generator, space, label)
    with torch.no_grad():
        real = to_float(picture[None].to(generator.device))  # [1, C, R, R]
        wanted = perceptual.embed(at_resolution(real, resolution))  # [1, D]

    def distance(w: Tensor) -> Tensor:
        image = at_resolution(_image(space, w), resolution)
        return (perceptual.embed(image) - wanted).square().sum()

    w = mean.clone().requires_grad_()  # [1, w_dim]
    optimizer = torch.optim.Adam([w], lr=_RATE)
    before = float(distance(mean))
    with progress_bar("projecting", "step", steps) as bar:
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate(step, steps)
            optimizer.zero_grad()
            place = torch.tensor([step], device=w.device)
            offset = BatchRandom(0, "project", place).normal(space.w_dim)  # [1, w_dim]
            loss = distance(w + noise_scale(step, steps) * deviation * offset)
            loss.backward()
            optimizer.step()
            if step % 10 == 0:
                bar.set_postfix(distance=f"{loss.item():.4g}", refresh=False)
            bar.update()
    w = w.detach()
    with torch.no_grad():
        after = float(distance(w))
        image = to_uint8_at(_image(space, w), resolution)[0].cpu()
    return Projection(w.cpu(), image, before, after)


def save_projection(
    found: Projection, picture: Tensor, out: Path, origin: Origin | None = None
) -> tuple[Path, Path]:
    """Write the picture and its reconstruction side by side to `out`, and `w` float [1, w_dim] to a
    .safetensors file of the same name; returns both paths."""
    weights = out.with_suffix(".safetensors")
    write_aside(weights, save({"w": found.w.contiguous()}))
    return save_grid(torch.stack([picture, found.image]), 2, out, origin), weights


def rate(step: int, steps: int) -> float:
    """Adam's learning rate at a step: it rises linearly at first and falls along a cosine at the
    end."""
    done = (step + 0.5) / steps
    up = min(1.0, done / _RATE_UP)
    down = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - done) / _RATE_DOWN))
    return _RATE * up * down


def noise_scale(step: int, steps: int) -> float:
    """The standard deviation of the noise that is added to w at a step, in units of the deviation
    of w: it falls quadratically to zero."""
    return _NOISE * max(0.0, 1 - step / steps / _NOISE_UNTIL) ** 2


@torch.no_grad()
def _centre(generator: Generator, space: StyleSpace, label: str | None) -> tuple[Tensor, float]:
    """The mean w [1, w_dim] of the class `label` or of all, and the root of the mean squared
    distance of w to it."""
    device = generator.device
    classes = labels(generator, label, LATENTS)
    w = torch.cat(
        [
            space.styles(
                generator.latents(range(at, at + 1000)).to(device),
                None if classes is None else classes[at : at + 1000].to(device),
            )
            for at in range(0, LATENTS, 1000)
        ]
    ).double()  # [LATENTS, w_dim]
    mean = w.mean(dim=0, keepdim=True)
    deviation = (w - mean).square().sum(dim=1).mean().sqrt()
    return mean.float(), float(deviation)


def _image(space: StyleSpace, w: Tensor) -> Tensor:
    """The image [1, C, r, r] of w [1, w_dim]."""
    return space.synthesise(w[:, None].expand(-1, space.num_ws, -1), "const")
