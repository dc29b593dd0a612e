"""Small StyleGANs for tests, with parameters as training leaves them: nothing zero, nothing one."""

from __future__ import annotations

import torch
from torch import Tensor

from gan_train.adversary import Batch, ImageShape
from gan_train.families.stylegan.build import StyleGANConfig
from gan_train.families.stylegan.config import OF_ONE_GENERATION
from gan_train.families.stylegan.family import StyleGAN
from gan_train.rng import BatchRandom

SHAPE = ImageShape(3, 16, ("A", "B", "C"))
SETTINGS: dict[str, object] = {
    "conditional": True,
    "z_dim": 8,
    "w_dim": 12,
    "mapping_layers": 3,
    "mapping_lr": 0.1,
    "class_mapping_layers": 2,
    "channels": {4: 9, 8: 7, 16: 5},
    "mbstd_group": 2,
    "fade_kimg": 1,
    "stable_kimg": 2,
    "kimg": 8,
}


def small(shape: ImageShape = SHAPE, **changes: object) -> StyleGAN:
    """A StyleGAN in float64 for 16x16 pixels and three classes, batch 8, from a fixed seed."""
    torch.manual_seed(0)
    family = StyleGANConfig.model_validate(of_generation(SETTINGS | changes)).build(shape, 8)
    family.double()
    lived(family)
    return family


def of_generation(settings: dict[str, object]) -> dict[str, object]:
    """The settings without those that belong to the other generation."""
    other = OF_ONE_GENERATION[1 if settings.get("generation", 2) == 2 else 2]
    return {name: value for name, value in settings.items() if name not in other}


@torch.no_grad()
def lived(module: torch.nn.Module) -> None:
    """Move biases and strengths of noise off their start, and the mean style off zero."""
    for parameter in module.parameters():
        if parameter.ndim < 2:
            parameter += 0.3 * torch.randn_like(parameter)
    for name, buffer in module.named_buffers():
        if name.endswith("w_avg"):
            buffer += torch.randn_like(buffer)


def draws(count: int = 8, stream: str = "test", start: int = 0) -> BatchRandom:
    """Draws of the samples that stand at these places of the run; the same at every call."""
    return BatchRandom(0, stream, torch.arange(start, start + count))


def normal(*shape: int, seed: int = 1) -> Tensor:
    """float64 ~ N(0, 1), the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def batch_of(family: StyleGAN, count: int = 8, side: int | None = None) -> Batch:
    """Images in [-1, 1] and classes."""
    shape = family.shape
    side = side or shape.resolution
    image = normal(count, shape.channels, side, side).tanh()
    return {"image": image, "label": torch.arange(count) % len(shape.classes)}


def halves(batch: Batch) -> list[Batch]:
    """Two micro-batches."""
    return [dict(zip(batch, parts, strict=True)) for parts in zip(
        *(value.chunk(2) for value in batch.values()), strict=True
    )]  # fmt: skip
