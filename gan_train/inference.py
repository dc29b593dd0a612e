"""Loads a trained generator from a checkpoint's files, and makes images with it.

It uses neither the trainer nor pickle: `generator.json` says how to build the networks, and
`generator.safetensors` holds the moving average of their weights. A registered model has both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from gan_train.adversary import (
    DOMAINS,
    Adversary,
    Clock,
    Domain,
    Generates,
    ImageShape,
    Translates,
    Upscales,
    task_of,
)
from gan_train.errors import UserError
from gan_train.families.catalogue import FamilyConfig
from gan_train.files.atomic import read_json
from gan_train.files.digests import sha256_of
from gan_train.files.tensors import load_tensors
from gan_train.images.origin import Command, Identity, Origin, library
from gan_train.images.pixels import to_float, to_uint8, to_uint8_at
from gan_train.images.tiles import upscale_picture
from gan_train.rng import BatchRandom

FORMAT = 1
"""The version of the layout of `generator.json` and of the names in `generator.safetensors`."""

VERSION = "version.json"
"""The file that says which version of a registered model a downloaded folder holds: an
`Identity`."""


def read_description(directory: Path) -> dict[str, Any]:
    """The content of `generator.json` in a checkpoint or a download: `family`, `batch`, `shape` and
    `clock` of the generator.

    Raises UserError where the file is missing or has another format.
    """
    path = directory / "generator.json"
    if not path.is_file():
        raise UserError(f"{directory} holds no generator.json: name a checkpoint's folder")
    try:
        described = read_json(path)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): take it from a copy") from None
    check_format(described, FORMAT, path)
    found: dict[str, Any] = described
    return found


def check_format(content: object, known: int, path: Path) -> None:
    """Raise UserError unless the content of the file at `path` has the format `known`."""
    found = content.get("format") if isinstance(content, dict) else None
    if found != known:
        raise _of_another_version(path, f"format {found}, this one reads format {known}")


def _of_another_version(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} is of another version of gan-train ({what}): use the version that wrote it, which "
        "a registered model carries with it"
    )


def _build(described: Mapping[str, Any], path: Path) -> Adversary:
    """The networks that `generator.json` describes, at the progress of its clock.

    Raises UserError where this version of the program does not know the family or a setting.
    """
    try:
        config: FamilyConfig = TypeAdapter(FamilyConfig).validate_python(described["family"])
        shape = ImageShape(**described["shape"])
        clock = Clock(**described["clock"])
    except ValidationError as problems:
        found = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in problems.errors()]
        raise _of_another_version(path, "; ".join(found)) from None
    except TypeError as error:  # a field that this version does not know
        raise _of_another_version(path, str(error)) from None
    shape = replace(shape, classes=tuple(shape.classes))
    adversary = config.build(shape, described["batch"])
    adversary.advance(clock)
    return adversary


def _load_averaged(adversary: Adversary, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load the averaged networks. Raises UserError where names or shapes are not those of the
    description at `path`."""
    for name in adversary.averaged:
        part = {k[len(name) + 1 :]: v for k, v in weights.items() if k.startswith(f"{name}.")}
        try:
            getattr(adversary, name).load_state_dict(part)
        except RuntimeError as error:
            raise _of_another_version(path, " ".join(str(error).split())) from None


def _identity(directory: Path) -> Identity:
    """Which generator a folder holds: a version, if it was downloaded from a registry, else a
    checkpoint, if it lies in a run."""
    weights, beside = sha256_of(directory / "generator.safetensors"), directory / VERSION
    if beside.is_file():
        try:
            known = Identity.model_validate_json(beside.read_bytes())
        except ValidationError:
            raise UserError(f"{beside} is damaged: delete it, and download again") from None
        return known.model_copy(update={"weights_sha256": weights})
    here = directory.resolve()
    if here.parent.name != "checkpoints":
        return Identity(weights_sha256=weights)
    run = here.parents[1].name
    return Identity(run=run[:500], checkpoint=here.name[:500], weights_sha256=weights)


def conversion(generator: Generator, source: bytes, to: str | None) -> Origin:
    """The origin of a picture that `Generator.converted` makes of the picture file `source`."""
    command: Command = "upscale" if generator.task == "upscale" else "translate"
    return generator.origin(command, to=to, source_sha256=hashlib.sha256(source).hexdigest())


class Generator:
    """A trained generator, which makes images from latents or from pictures.

    `shape` gives channels, resolution and classes; `z_dim` is the size of a latent, 0 for a family
    that takes pictures. `identity` says where it comes from.
    """

    def __init__(self, adversary: Adversary, family: str, identity: Identity | None = None) -> None:
        self.identity = identity or Identity()
        self.adversary = adversary.eval().requires_grad_(False)
        self.family, self.shape, self.task = family, adversary.shape, task_of(adversary)
        generates = adversary if isinstance(adversary, Generates) else None
        self.z_dim = generates.z_dim if generates else 0
        self.conditional = generates is not None and generates.conditional  # a class must be named

    @classmethod
    def load(cls, directory: Path, device: str = "cpu") -> Generator:
        """Read `generator.json` and `generator.safetensors` of a checkpoint or a download.

        Raises UserError where a file is missing, or comes from another version of the program.
        """
        described, path = read_description(directory), directory / "generator.json"
        weights = load_tensors(directory / "generator.safetensors")
        with torch.device("meta"):  # shapes alone: a description may ask for any amount of memory
            shapes = {name: tensor.to("meta") for name, tensor in weights.items()}
            _load_averaged(_build(described, path), shapes, path)
        adversary = _build(described, path)
        _load_averaged(adversary, weights, path)
        name = described["family"]["name"]
        return cls(adversary.to(device), name, _identity(directory))

    def origin(self, command: Command, **made_with: Any) -> Origin:
        """What a picture of this generator says of itself: see `images/origin.py`."""
        known = self.identity.model_dump()
        return Origin(command=command, gan_train=library(), **known, **made_with)

    @property
    def device(self) -> torch.device:
        """The device that the networks are on."""
        return next(self.adversary.parameters()).device

    def latents(self, seeds: Sequence[int]) -> Tensor:
        """Latents [N, z_dim] ~ N(0, 1), one for each seed, the same on every machine."""
        positions = torch.tensor(list(seeds), dtype=torch.int64)
        return BatchRandom(0, "generate", positions).normal(self.z_dim)

    @torch.inference_mode()
    def images(self, z: Tensor, label: Tensor | None = None, truncation: float = 1.0) -> Tensor:
        """Images uint8 [N, C, H, W] from latents [N, z_dim] and, if conditional, labels int64 [N].

        `truncation` below 1 trades variety for typicality. Raises UserError for latents of another
        size, a missing or unknown label, and a family that takes pictures.
        """
        if not isinstance(self.adversary, Generates):
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
        """Upscale a picture uint8 [C, H, W] of any size, or translate it to the domain A or B.

        Returns a picture uint8 [C, H', W'].

        Raises UserError for a generator that takes latents, for a domain given to a model that
        upscales, and for a missing or unknown domain where the model translates.
        """
        upscaler = self.adversary
        picture = picture.to(self.device)
        if isinstance(upscaler, Upscales):
            if to is not None:
                raise UserError(f"to={to}: this model upscales, and has no domains; leave it out")
            scale, overlap = upscaler.scale, upscaler.reach
            return upscale_picture(upscaler.upscale, picture, scale, overlap=overlap).cpu()
        if not isinstance(self.adversary, Translates):
            raise UserError(f"{self.family} makes images of latents: use gan-train generate")
        if to not in DOMAINS:
            raise UserError(f"to={to}: allowed: {', '.join(DOMAINS)}")
        domain: Domain = "A" if to == "A" else "B"
        image = self.adversary.translate(to_float(picture[None]), domain)
        return to_uint8(image)[0].cpu()
