"""Fuzzes the readers of a run's files: manifest, state, scores, tensors and event log.

    python -m tests.fuzz.runs --inputs 100000

Every reader gets every input, as the file that it reads.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save

from gan_train.errors import UserError
from gan_train.files.atomic import write_json
from gan_train.files.digests import sha256_of
from gan_train.runs import integrity
from gan_train.runs.events import LOG_NAME, EventLog, last_event, read_events
from tests.fuzz.runner import Target, main

_EVENTS: tuple[dict[str, object], ...] = (
    {"kind": "start", "nimg": 0, "time_ms": 1, "precision": "bf16"},
    {"kind": "metrics", "nimg": 4000, "time_ms": 2, "values": {"loss/D": 1.25, "alpha": 0.5}},
    {"kind": "image", "nimg": 4000, "time_ms": 3, "path": "samples/000004000.png"},
    {"kind": "checkpoint", "nimg": 4000, "time_ms": 4, "path": "c/4", "scores": {"fid": 3.0}},
    {"kind": "cut", "nimg": 4000, "time_ms": 5},
    {"kind": "end", "nimg": 4000, "time_ms": 6, "status": "finished"},
)
_STATE = {
    "format": 1,
    "clock": {"step": 4, "nimg": 64},
    "stage": "8",
    "config": {"train": {"precision": "float32"}},
    "data": "0" * 64,
}
_SCORES = {"scores": {"fid": 1.5, "kid": 2}, "protocol": {"images": 8, "data": "x"}}
_MANIFEST = {f"{name}.safetensors": "0" * 64 for name in ("networks", "generator", "optimizers")}
_SEEDS = (
    json.dumps(_MANIFEST | {"generator.json": "1" * 64, "state.json": "2" * 64}).encode(),
    json.dumps(_STATE).encode(),
    json.dumps(_SCORES).encode(),
    save({"a": torch.arange(6.0), "b.weight": torch.ones(2, 3)}),
    "".join(json.dumps(event) + "\n" for event in _EVENTS).encode(),
)
TOKENS = (b"null", b"[]", b"{}", b"NaN", b"1e999", b'"format": 2', b"\n", b"-1", b'"F32"', b"[" * 9)
ALLOWED = (integrity.Damaged, UserError)


def seeds() -> list[bytes]:
    """Whole files of each kind."""
    return list(_SEEDS)


def target(folder: Path) -> Target:
    """Gives bytes to each reader, as the file in this folder that it reads."""

    def read(data: bytes) -> None:
        refused: list[Exception] = []
        for file, reader in (
            (integrity.MANIFEST, integrity.read_manifest),
            (integrity.STATE, integrity.read_state),
            (integrity.SCORES, integrity.read_scores),
        ):
            (folder / file).write_bytes(data)
            try:
                reader(folder)
            except ALLOWED as error:
                refused.append(error)
        _tensors(folder, data)
        _log(folder, data)
        if len(refused) == 3:
            raise refused[0]

    return read


def _tensors(folder: Path, data: bytes) -> None:
    """All files of a checkpoint hold these bytes, and its manifest tells their checksums."""
    for name in _MANIFEST:
        (folder / name).write_bytes(data)
    (folder / "generator.json").write_bytes(b"{}")
    digests = {name: sha256_of(folder / name) for name in (*_MANIFEST, "generator.json")}
    write_json(folder / integrity.MANIFEST, digests)
    fault = integrity.find_damage(folder)
    assert fault is None or isinstance(fault, str)


def _log(folder: Path, data: bytes) -> None:
    """A log of any bytes is read, written on, and then ends in what was written."""
    (folder / LOG_NAME).write_bytes(data)
    before = read_events(folder)
    last_event(folder)
    log = EventLog(folder)
    nimg = max((event["nimg"] for event in before), default=0) + 1
    log.append("image", nimg, path="x")
    assert [event["nimg"] for event in read_events(folder)] == [*(e["nimg"] for e in before), nimg]
    last = last_event(folder)
    assert last is not None and last["nimg"] == nimg


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        sys.exit(main("runs", target(Path(place)), seeds(), ALLOWED, TOKENS))
