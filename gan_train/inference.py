"""From a checkpoint's generator files to images, without training code or pickle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from gan_train.adversary import DOMAINS, Adversary, Clock, Domain, ImageShape
from gan_train.errors import UserError
from gan_train.families.catalogue import FamilyConfig
from gan_train.files.atomic import read_json
from gan_train.images.pixels import to_float, to_uint8, to_uint8_at
from gan_train.images.tiles import upscale_picture
from gan_train.rng import BatchRandom


class Generator:
    """A trained generator. `shape` tells channels, resolution and classes; `z_dim` the latents."""

    def __init__(self, adversary: Adversary, family: str) -> None:
        self.adversary = adversary.eval().requires_grad_(False)
        self.family, self.shape, self.z_dim = family, adversary.shape, adversary.z_dim
        self.conditional = adversary.conditional  # a class must be asked for
        self.task = adversary.task

    @classmethod
    def load(cls, directory: Path, device: str = "cpu") -> Generator:
        """Read `generator.json` and `generator.safetensors` of a checkpoint or a download."""
        if not (directory / "generator.json").is_file():
            raise UserError(f"{directory} holds no generator.json: name a checkpoint's folder")
        about = read_json(directory / "generator.json")
        config = TypeAdapter(FamilyConfig).validate_python(about["family"])
        shape = about["shape"] | {"classes": tuple(about["shape"]["classes"])}
        adversary = config.build(ImageShape(**shape), about["batch"])
        weights = load_file(directory / "generator.safetensors")
        for name in adversary.averaged:
            part = {k[len(name) + 1 :]: v for k, v in weights.items() if k.startswith(f"{name}.")}
            getattr(adversary, name).load_state_dict(part)
        adversary.advance(Clock(**about["clock"]))
        return cls(adversary.to(device), about["family"]["name"])

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.adversary.parameters()).device

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """[N, z_dim] ~ N(0, 1): one latent per seed, the same on every machine."""
        positions = torch.tensor(list(seeds), dtype=torch.int64)
        return BatchRandom(0, "generate", positions).normal(self.z_dim)

    @torch.inference_mode()
    def images(self, z: Tensor, label: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        """uint8 [N, C, H, W] from latents [N, z_dim] and, if conditional, classes int64 [N]."""
        if self.task != "generate":
            raise UserError(f"{self.family} makes pictures of pictures: use gan-train {self.task}")
        if z.ndim != 2 or z.shape[1] != self.z_dim:
            raise UserError(f"z has shape {list(z.shape)}; expected [N, {self.z_dim}]")
        if self.conditional:
            if label is None:
                raise UserError(f"name a class, one of: {', '.join(self.shape.classes)}")
            if len(label) and not 0 <= int(label.min()) <= int(label.max()) < len(
                self.shape.classes
            ):
                raise UserError(f"labels go from 0 to {len(self.shape.classes) - 1}")
        label = label.to(self.device) if label is not None and self.conditional else None
        image = self.adversary.sample(z.to(self.device), label, truncation)
        return to_uint8_at(image, self.shape.resolution).cpu()

    @torch.inference_mode()
    def converted(self, picture: Tensor, to: str | None = None) -> Tensor:
        """uint8 [C, H', W'] of a picture uint8 [C, H, W] of any size: enlarged, or translated to
        the domain A or B.

        Raises UserError for a generator that takes latents, and for a domain where there is none
        or one where it is missing.
        """
        if self.task == "generate":
            raise UserError(f"{self.family} makes images of latents: use gan-train generate")
        picture = picture.to(self.device)
        if self.task == "upscale":
            if to is not None:
                raise UserError(f"to={to}: this model enlarges, it has no domains; leave it out")
            upscaler = self.adversary
            scale, overlap = upscaler.scale, upscaler.reach
            return upscale_picture(upscaler.upscale, picture, scale, overlap=overlap).cpu()
        if to not in DOMAINS:
            raise UserError(f"to={to}: allowed: {', '.join(DOMAINS)}")
        domain: Domain = "A" if to == "A" else "B"
        image = self.adversary.translate(to_float(picture[None]), domain)
        return to_uint8(image)[0].cpu()
