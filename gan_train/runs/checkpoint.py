"""Writes, checks, reads and thins checkpoints, and says which settings a resumed run may change.

Checkpoints hold safetensors and JSON, and no pickle. A folder is written under another name, given
checksums, and renamed, so that a kill leaves either a whole checkpoint or none:

    checkpoints/000012000/
        networks.safetensors     all networks and buffers as trained
        generator.safetensors    the averaged networks: what `inference.py` loads
        generator.json           the family, shape and clock that rebuild those networks
        optimizers.safetensors   the moments, named <optimizer>/<parameter>/<quantity>
        state.json               clock, stage, configuration, data hash, place in the ledger,
                                 what was measured since the last tick
        MANIFEST.json            sha256 of each file above
        scores.json              added once the checkpoint has been scored
        PRUNED                   marks a checkpoint that was thinned to its generator and scores
        ABANDONED                marks a checkpoint that no longer belongs to the run, because the
                                 run was resumed from an earlier one (`abandon_after`)

The order of the data, the latents and the fades are functions of the clock: restoring the clock
restores them.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic import BaseModel, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from gan_train import inference
from gan_train.adversary import Adversary, Clock, ImageShape
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.files.atomic import folder_aside, write_json
from gan_train.files.digests import sha256_of
from gan_train.files.tensors import load_tensors
from gan_train.runs.integrity import (
    FORMAT,
    STATE,
    Damaged,
    Pending,
    State,
    read_state,
    refuse_not_finite,
)
from gan_train.runs.integrity import MANIFEST as MANIFEST
from gan_train.runs.integrity import SCORES as SCORES
from gan_train.runs.integrity import find_damage as find_damage

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
PRUNED = "PRUNED"
ABANDONED = "ABANDONED"


# ---- files -------------------------------------------------------------------------------------


def _save_tensors(state: Mapping[str, Tensor], path: Path) -> None:
    # safetensors needs dense, unshared memory, so a layout such as channels_last is not kept
    save_file({k: v.detach().to("cpu").contiguous().clone() for k, v in state.items()}, path)


# ---- the generator alone -----------------------------------------------------------------------


def save_generator(
    directory: Path, averaged: Mapping[str, Tensor], config: Config, shape: ImageShape, clock: Clock
) -> None:
    """Write what inference needs: the averaged weights, and how to build the networks for them."""
    _save_tensors(averaged, directory / "generator.safetensors")
    family = config.family.model_dump(mode="json")
    write_json(
        directory / "generator.json",
        {
            "format": inference.FORMAT,
            "recipe": config.name,
            "family": family,
            "batch": config.train.batch,
            "shape": asdict(shape),
            "clock": asdict(clock),
        },
    )


# ---- whole checkpoints -------------------------------------------------------------------------


def save(
    run_dir: Path,
    adversary: Adversary,
    averaged: Mapping[str, Tensor],
    optimizers: Mapping[str, torch.optim.Optimizer],
    config: Config,
    data_hash: str,
    clock: Clock,
    trained: Clock,
    stage: str,
    chain: str,
    curves: Mapping[str, Pending],
) -> Path:
    """Write the checkpoint of this clock and return its folder. Only rank 0 calls this.

    `trained` is the clock of the last step: the generator is used at the resolution and fade at
    which its weights were trained, not at those of the next step. `chain` is that of the
    checkpoint's entry in the run's ledger (`ledger.py`), and `curves` what was measured since the
    last tick.

    The state must be finite (`check_finite`). Raises `DiskFull`; the earlier checkpoints then stay
    valid, as the folder is renamed only when all of it is on the disk.
    """
    networks, moments = adversary.state_dict(), optimizer_state(adversary, optimizers)
    needed = sum(
        t.numel() * t.element_size()
        for part in (networks, moments, averaged)
        for t in part.values()
    )
    folder = run_dir / FOLDER / f"{clock.nimg:012d}"
    with folder_aside(folder, needed) as aside:  # replaces a damaged checkpoint of this clock
        _save_tensors(networks, aside / "networks.safetensors")
        _save_tensors(moments, aside / "optimizers.safetensors")
        save_generator(aside, averaged, config, adversary.shape, trained)
        write_json(
            aside / STATE,
            {
                "format": FORMAT,
                "clock": asdict(clock),
                "stage": stage,
                "config": config.model_dump(mode="json"),
                "data": data_hash,
                "ledger": chain,
                "curves": {name: values.model_dump() for name, values in curves.items()},
            },
        )
        _seal(aside)
    return folder


def check_finite(
    adversary: Adversary,
    averaged: Mapping[str, Tensor],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Raise FloatingPointError unless all that a checkpoint holds is finite. All workers have the
    same state, and get the same answer."""
    refuse_not_finite("networks", adversary.state_dict())
    refuse_not_finite("averaged networks", averaged)
    refuse_not_finite("optimizers' moments", optimizer_state(adversary, optimizers))


def save_start(
    folder: Path, adversary: Adversary, averaged: Mapping[str, Tensor], config: Config
) -> Path:
    """Write networks that were not trained here: a checkpoint without progress and optimizers.

    It can make images, be registered, and start a run (`train.start_from`), but not be resumed.
    Raises UserError when `folder` exists already.
    """
    if folder.exists():
        raise UserError(f"{folder} is there already: name another folder, or delete it")
    with folder_aside(folder) as aside:
        _save_tensors(adversary.state_dict(), aside / "networks.safetensors")
        save_generator(aside, averaged, config, adversary.shape, Clock())
        _seal(aside)
    return folder


def _seal(folder: Path) -> None:
    """Write the checksums of the folder's files into its manifest."""
    write_json(folder / MANIFEST, {p.name: sha256_of(p) for p in sorted(folder.iterdir())})


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The folders of the checkpoints that can be resumed unless they are damaged, newest first."""
    return [folder for folder in list_generators(run_dir) if not (folder / PRUNED).exists()]


def list_generators(run_dir: Path) -> list[Path]:
    """The folders of all checkpoints of the run, newest first.

    Checkpoints that were thinned to their generator are included, abandoned ones are not.
    """
    root = run_dir / FOLDER
    if not root.is_dir():
        return []
    folders = (p for p in root.iterdir() if p.name.isdigit() and not (p / ABANDONED).exists())
    return sorted(folders, reverse=True)


def abandon_after(run_dir: Path, nimg: int) -> None:
    """Mark the checkpoints beyond `nimg` images as abandoned, when the run is resumed at `nimg`.

    They are damaged ones that were skipped, and thinned ones. They no longer belong to the run,
    which replaces them where it saves a checkpoint at the same number of images.
    """
    for folder in list_generators(run_dir):
        if int(folder.name) > nimg:
            (folder / ABANDONED).touch()


def newest_valid(run_dir: Path, passed_over: dict[str, str] | None = None) -> Path | None:
    """The newest checkpoint that can be resumed; None if the run has no checkpoint at all. An error
    is logged for each damaged one, and `passed_over` gets its name and what is wrong.

    Raises UserError where there are some and none can be resumed: to begin anew would be to lose
    the run silently.
    """
    damaged = {} if passed_over is None else passed_over
    for folder in list_checkpoints(run_dir):
        fault = find_damage(folder)
        if fault is None:
            return folder
        log.error("DAMAGED CHECKPOINT passed over: %s: %s", folder, fault)
        damaged[folder.name] = fault
    if left := list_generators(run_dir):
        raise UserError(
            f"none of the {len(left)} checkpoints of {run_dir.name} can be resumed; the newest: "
            f"{damaged.get(left[0].name, 'thinned to its generator')}. Bring one back from a copy, "
            f"or start a new run; to begin this one from nothing, move {run_dir / FOLDER} away"
        )
    return None


def load(
    folder: Path,
    adversary: Adversary,
    optimizers: Mapping[str, torch.optim.Optimizer],
    config: Config,
    data_hash: str,
) -> tuple[State, dict[str, Tensor]]:
    """Restore networks and optimizers in place; return what the checkpoint tells of the run, and
    the averaged weights.

    Raises UserError when the configuration or the data differ from the checkpoint's, or another
    version of the program wrote it.
    """
    state = read_state(folder)
    inference.read_description(folder)
    if state.data != data_hash:
        raise UserError(
            f"{folder} was trained on other data (content hash {state.data[:12]}, now "
            f"{data_hash[:12]}): restore the data, or start a new run"
        )
    refuse_changes(state.config, config)
    device = next(adversary.parameters()).device
    adversary.load_state_dict(load_tensors(folder / "networks.safetensors", device=str(device)))
    moments = load_tensors(folder / "optimizers.safetensors", device=str(device))
    load_optimizer_state(adversary, optimizers, moments)
    averaged = load_tensors(folder / "generator.safetensors", device=str(device))
    return state, averaged


def precision_of(run_dir: Path) -> str | None:
    """The precision with which a run was trained, as its newest readable checkpoint records it;
    None if there is none."""
    for folder in list_checkpoints(run_dir):
        with contextlib.suppress(Damaged):  # an earlier one tells as well
            return precision_in(folder)
    return None


def precision_in(folder: Path) -> str:
    """The precision with which a checkpoint that can be resumed was trained."""
    try:
        precision: str = read_state(folder).config["train"]["precision"]
    except (KeyError, TypeError):
        raise Damaged(f"{folder / STATE} tells no precision") from None
    return precision


def prune(run_dir: Path, keep: int, best: Path | None) -> None:
    """Thin all but the `keep` newest checkpoints and the best one to their generator and scores.

    A thinned checkpoint can be registered and sampled, but not resumed.
    """
    for folder in list_checkpoints(run_dir)[keep:]:
        if best is None or folder.name != best.name:
            (folder / PRUNED).touch()
    for folder in list_generators(run_dir):
        if (folder / PRUNED).exists():  # also one that a kill left half thinned
            for name in (MANIFEST, "networks.safetensors", "optimizers.safetensors", STATE):
                (folder / name).unlink(missing_ok=True)


# ---- optimizers --------------------------------------------------------------------------------


def _names(adversary: Adversary) -> dict[int, str]:
    return {id(p): name for name, p in adversary.named_parameters()}


def optimizer_state(
    adversary: Adversary, optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """The optimizers' moments, as tensors with the names <optimizer>/<parameter>/<quantity>."""
    names = _names(adversary)
    return {
        f"{key}/{names[id(p)]}/{quantity}": value
        for key, optimizer in optimizers.items()
        for p, moments in optimizer.state.items()
        for quantity, value in moments.items()
        if isinstance(value, Tensor)
    }


def load_optimizer_state(
    adversary: Adversary,
    optimizers: Mapping[str, torch.optim.Optimizer],
    state: Mapping[str, Tensor],
) -> None:
    """Put moments, as `optimizer_state` returned them, into the optimizers."""
    parameters = dict(adversary.named_parameters())
    for path, value in state.items():
        key, name, quantity = path.split("/")
        parameter = parameters[name]
        if value.shape == parameter.shape:
            # fused kernels pair elements by their place in memory, so moments and parameter must
            # have the same memory layout
            dtype = value.dtype if quantity == "step" else parameter.dtype
            value = torch.empty_like(parameter, dtype=dtype).copy_(value)
        optimizers[key].state[parameter][quantity] = value.to(parameter.device)


# ---- what may change between a run and its resumption ------------------------------------------


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            k: v
            for key, part in value.items()
            for k, v in _flatten(part, f"{prefix}{key}.").items()
        }
    return {prefix[:-1]: value}


def harmless_keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    """The dotted keys of the fields that are declared harmless on resume, in `model` and all groups
    below it, including optional groups and every alternative of a union."""
    keys = set()
    for name, info in model.model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("resume") == "harmless":
            keys.add(prefix + name)
            continue
        for group in (info.annotation, *get_args(info.annotation)):
            if isinstance(group, type) and issubclass(group, BaseModel):
                keys |= harmless_keys(group, f"{prefix}{name}.")
    return keys


def refuse_changes(saved: dict[str, Any], config: Config) -> None:
    """Raise UserError if the resumed run would train differently from the saved one.

    A setting that the saved configuration does not have yet counts as its default.
    """
    with contextlib.suppress(ValidationError):  # a setting that no longer exists is named below
        saved = Config.model_validate(saved).model_dump(mode="json")
    before, after = _flatten(saved), _flatten(config.model_dump(mode="json"))
    allowed = harmless_keys(Config) | set(config.train.allow_changed)
    changed = [
        key
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
        and not any(key == a or key.startswith(f"{a}.") for a in allowed)
    ]
    if changed:
        lines = "; ".join(f"{k}: {before.get(k)!r} -> {after.get(k)!r}" for k in changed)
        raise UserError(
            f"the configuration differs from the one this run was started with: {lines}. Restore "
            f"it, start a new run, or declare it harmless: --set train.allow_changed="
            f"[{', '.join(changed)}]"
        )
