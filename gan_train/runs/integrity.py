"""Tells whether a checkpoint's files can be used: whole, of a known format, and finite.

Any bytes may stand in these files, since disks fail and people edit. A reader here returns a value,
or raises `Damaged`, which says what is wrong. What a newer version wrote is refused, and never
taken for damage: the run would go on from an older checkpoint without need.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StrictInt, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gan_train.adversary import Clock
from gan_train.errors import UserError
from gan_train.files.digests import sha256_of

MANIFEST = "MANIFEST.json"
SCORES = "scores.json"
"""The scores by which the best checkpoint is chosen."""
REPORTED = "reported.json"
"""The scores of the best checkpoint on latents that did not choose it, in the same form."""
STATE = "state.json"
FORMAT = 1
"""The version of the layout of `state.json` and of the names of the tensors."""
_MOST_BYTES = 64 << 20  # no JSON file of a checkpoint comes near
_NEEDED = {"networks.safetensors", "generator.safetensors", "generator.json"}

Digests = dict[str, str]


class Damaged(ValueError):
    """A file is not what was written. The text says which one, and what is wrong with it."""


class Scored(BaseModel):
    """What `scores.json` holds: values by name, and how they were measured."""

    model_config = ConfigDict(extra="allow")
    scores: dict[str, float]
    protocol: dict[str, StrictInt | str]


class Pending(BaseModel):
    """The values of a curve that no tick has told yet: how many each worker has, and the sum of
    those of each, in the order of ranks."""

    model_config = ConfigDict(frozen=True)
    count: int = Field(ge=1, le=2**24)
    sums: tuple[FiniteFloat, ...] = Field(min_length=1)


class State(BaseModel):
    """What `state.json` holds. `data` is the content hash of the data set, `ledger` the chain of
    the checkpoint's entry in the run's ledger, and `curves` what a run had measured since its last
    tick when it was stopped; earlier versions wrote neither of the two."""

    model_config = ConfigDict(frozen=True)
    format: Literal[1]
    clock: Clock
    stage: str
    config: dict[str, Any]
    data: str = Field(pattern="^[0-9a-f]{64}$")
    ledger: str | None = None
    curves: dict[str, Pending] = {}


# ---- JSON --------------------------------------------------------------------------------------


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises `Damaged` where there is none."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise Damaged(f"{path.name} is far too large")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Damaged(f"{path.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"no readable {path.name} ({error})") from None
    if not isinstance(value, dict):
        raise Damaged(f"{path.name} holds no object")
    return value


def _refuse_newer(content: Mapping[str, Any], path: Path) -> None:
    found = content.get("format", FORMAT)
    if isinstance(found, int) and found > FORMAT:
        raise UserError(
            f"{path} is of another version of gan-train (format {found}, this one reads format "
            f"{FORMAT}): update gan-train, and start again"
        )


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


def read_manifest(folder: Path) -> Digests:
    """The SHA-256 of each file of a checkpoint, by name. Raises `Damaged`, and UserError for a
    later format."""
    path = folder / MANIFEST
    content = read_object(path)
    _refuse_newer(content, path)
    content.pop("format", None)
    for name, digest in content.items():
        if Path(name).name != name or not isinstance(digest, str) or len(digest) != 64:
            raise Damaged(f"{MANIFEST} has no file and checksum in {name[:40]!r}")
    if lacking := _NEEDED - content.keys():
        raise Damaged(f"{MANIFEST} lacks {min(lacking)}")
    return content


def read_state(folder: Path) -> State:
    """What a checkpoint tells of the run. Raises `Damaged`, and UserError for a later format."""
    content = read_object(folder / STATE)
    _refuse_newer(content, folder / STATE)
    try:
        return State.model_validate(content)
    except ValidationError as error:
        raise Damaged(f"{STATE}: {_first(error)}") from None


def read_scores(folder: Path, name: str = SCORES) -> dict[str, Any] | None:
    """The scores beside a checkpoint, in the file `name`, as they were written: `scores`,
    `protocol`, and what a family that grows adds. None where there are none. Raises `Damaged`."""
    if not (folder / name).exists():
        return None
    content = read_object(folder / name)
    try:
        Scored.model_validate(content)
    except ValidationError as error:
        raise Damaged(f"{name}: {_first(error)}") from None
    return content


# ---- tensors -----------------------------------------------------------------------------------


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor that holds NaN or an infinity; None if all are finite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor.detach())  # one pass, and NaN comes through
            if not (low.isfinite() and high.isfinite()):
                return name
    return None


def refuse_not_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise FloatingPointError if a tensor is not finite."""
    if (name := not_finite(tensors)) is not None:
        raise FloatingPointError(
            f"training diverged: {name} of the {what} is not finite. This state is not saved; the "
            "checkpoints before it stand. Lower the learning rate or raise the gradient penalty, "
            "and resume from the last one"
        )


def _broken_tensors(path: Path) -> str | None:
    """What is wrong with a safetensors file; None if it can be read and is finite. Tensors are read
    one at a time."""
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no mapping
                if not_finite({name: file.get_tensor(name)}) is not None:
                    return f"{path.name} holds values that are not finite, in {name}"
    except (SafetensorError, OSError, ValueError) as error:
        return f"{path.name} is no safetensors file ({error})"
    return None


# ---- all of it ---------------------------------------------------------------------------------


def find_damage(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, in words; None if every checksum holds, every file can be
    read and every tensor is finite. Raises UserError where a newer version wrote it."""
    try:
        manifest = read_manifest(folder)
        for name, digest in manifest.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if sha256_of(path) != digest:
                return f"{name} is not what was written (checksum differs)"
        if STATE in manifest:
            read_state(folder)
        read_object(folder / "generator.json")
    except Damaged as damage:
        return str(damage)
    tensors = sorted(name for name in manifest if name.endswith(".safetensors"))
    return next((broken for name in tensors if (broken := _broken_tensors(folder / name))), None)
