"""Starts a new run from existing networks: those of another run's checkpoint or an imported model.

Only networks are taken. The optimizers, the clock and the family's own statistics start anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from gan_train.adversary import Adversary
from gan_train.errors import UserError
from gan_train.files.store import brought
from gan_train.files.tensors import load_tensors
from gan_train.runs.checkpoint import find_damage

NETWORKS = "networks.safetensors"
AVERAGED = "generator.safetensors"


def start_from(place: str, adversary: Adversary, averaged: Mapping[str, Tensor]) -> None:
    """Load the networks in a folder, and their moving averages, into those of a new run. The folder
    may lie in a bucket.

    `averaged` has the tensors of the run's averaged networks by name; they are overwritten.

    Raises UserError when the folder holds no networks, is damaged, or its networks differ in shape.
    """
    folder = brought(place)
    check_folder(folder)
    fault = find_damage(folder)
    if fault is not None:
        raise UserError(f"train.start_from: {folder} is damaged: {fault}")
    names = network_names(adversary)
    given = {k: v for k, v in load_tensors(folder / NETWORKS).items() if k.split(".")[0] in names}
    pairs = [
        (networks(adversary), given),
        (averaged, load_tensors(folder / AVERAGED)),
    ]
    for own, found in pairs:
        if (first := difference(own, found)) is not None:
            raise UserError(
                f"train.start_from: the networks in {folder} do not fit: {first}. Change `family` "
                "or `data` to match, or start from other networks"
            )
    for own, found in pairs:
        take(own, found)


def misfit(folder: Path, adversary: Adversary) -> str | None:
    """Why a run of this adversary cannot begin with the networks in `folder`; None if it can. The
    adversary's tensors are overwritten."""
    own = networks(adversary)
    averaged = {k: v.clone() for k, v in own.items() if k.split(".")[0] in adversary.averaged}
    try:
        start_from(str(folder), adversary, averaged)
    except UserError as error:
        return str(error)
    return None


def check_folder(folder: Path) -> None:
    """Raise UserError unless `folder` holds networks to start from."""
    if not (folder / NETWORKS).is_file():
        raise UserError(
            f"train.start_from: {folder} holds no {NETWORKS}: name a checkpoint's folder (older "
            "ones keep their generator alone), or one that `gan-train import` wrote"
        )


def network_names(adversary: Adversary) -> set[str]:
    """The names of the submodules that are networks: an optimizer changes them, or they have a
    moving average."""
    moved = {name for spec in adversary.optimizers().values() for name in spec.nets}
    return moved | set(adversary.averaged)


def networks(adversary: Adversary) -> dict[str, Tensor]:
    """The networks' own parameters and buffers by name, without the family's other state."""
    names = network_names(adversary)
    return {k: v for k, v in adversary.state_dict().items() if k.split(".")[0] in names}


def difference(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> str | None:
    """Name the first tensor that only one side has, or whose shapes differ; None if all agree."""
    for name in sorted(own.keys() | given.keys()):
        here = list(own[name].shape) if name in own else "absent"
        there = list(given[name].shape) if name in given else "absent"
        if here != there:
            return f"{name} is {there} there, and {here} in the networks of this recipe"
    return None


@torch.no_grad()
def take(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Copy `given` into the tensors of `own`, which have the same names and shapes."""
    for name, tensor in own.items():
        tensor.copy_(given[name])
