"""Stores the statistics of the real images, so that they are computed once per data set.

A safetensors file holds the tensors. A JSON file beside it says what they describe, holds single
values, and has the digest of the tensors' file. It is written last: without it the tensors do not
count. Only rank 0 reads and writes, so workers need not share a disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from gan_train.files.atomic import write_aside
from gan_train.nn.collectives import active, from_first_worker

log = logging.getLogger(__name__)

VERSION = 4
"""Increase this when the stored statistics change their meaning: older files are then replaced."""
TENSORS, RECORD = "statistics.safetensors", "statistics.json"
Identity = Mapping[str, str | int]


@dataclass(frozen=True)
class RealStatistics:
    """Tensors by name (those of `real.reference_tensors`; `weights` and `bias` of the classifier),
    and single values by the name under which they stand beside a score (`..._null` and `..._real`).
    """

    tensors: dict[str, Tensor]
    values: dict[str, float]


class _Damaged(Exception):
    """The files on disk are damaged, or belong to another identity."""


def load(folder: Path, identity: Identity) -> RealStatistics | None:
    """The statistics that `store` wrote for the same identity. None if there are none, or, with a
    warning, if they are damaged or of another identity."""
    record = folder / RECORD
    if not record.exists():
        return None
    try:
        return _read(record.read_bytes(), (folder / TENSORS).read_bytes(), identity)
    except (_Damaged, OSError) as error:
        log.warning("%s: %s; the real images' statistics are computed anew", folder, error)
        return None


def _read(record: bytes, data: bytes, identity: Identity) -> RealStatistics:
    try:
        known = json.loads(record)
        tensors = safetensors.torch.load(data)
        values = {str(name): float(value) for name, value in known["values"].items()}
        found = (known["version"], known["identity"], known["sha256"])
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise _Damaged(f"damaged ({error})") from error
    if found[2] != hashlib.sha256(data).hexdigest():
        raise _Damaged(f"damaged, {TENSORS} has not the recorded SHA-256")
    if found[:2] != (VERSION, dict(identity)):
        raise _Damaged("made under another protocol")
    return RealStatistics(tensors, values)


def store(folder: Path, identity: Identity, statistics: RealStatistics) -> None:
    """Write the statistics: tensors first, then the record that makes them count."""
    tensors = {name: value.cpu().contiguous() for name, value in statistics.tensors.items()}
    data = safetensors.torch.save(tensors)
    record = {
        "version": VERSION,
        "identity": dict(identity),
        "values": statistics.values,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    write_aside(folder / TENSORS, data)
    write_aside(folder / RECORD, json.dumps(record, indent=1).encode())


def share(statistics: RealStatistics | None, device: torch.device) -> RealStatistics | None:
    """Rank 0's statistics on every rank, tensors on `device`; None when rank 0 has none."""
    payload = b""
    if statistics is not None:
        if not active():
            return _to_device(statistics, device)
        tensors = {name: value.cpu() for name, value in statistics.tensors.items()}
        payload = safetensors.torch.save(tensors, {"values": json.dumps(statistics.values)})
    data = from_first_worker(payload, device)
    if not data:
        return None
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    values: dict[str, float] = json.loads(header["__metadata__"]["values"])
    return _to_device(RealStatistics(safetensors.torch.load(data), values), device)


def _to_device(statistics: RealStatistics, device: torch.device) -> RealStatistics:
    tensors = {name: value.to(device) for name, value in statistics.tensors.items()}
    return RealStatistics(tensors, statistics.values)
