"""The ledger of a run: a chain of hashes of what was trained, which `gan-train verify` repeats.

Rank 0 appends to `ledger.jsonl` in the run's folder. It has one entry on each line:

    {"kind": "start", "nimg": 0, "data": "<content hash>", "config": {...}, "environment": {...}}
    {"kind": "weights", "nimg": 4000, "step": 125, "next": "00003-000124", "networks": "...",
     "curves": "..."}
    {"kind": "checkpoint", "nimg": 4000, "step": 125, "networks": "...", "averaged": "...",
     "optimizers": "..."}
    {"kind": "scores", "nimg": 4000, "scores": "..."}
    {"kind": "cut", "nimg": 4000}

`next` is the sample at the next position of the order. `networks`, `averaged` and `optimizers` are
fingerprints (`nn/fingerprint.py`), `curves` and `scores` digests of what the event log was told.
Each line also has `chain`, the SHA-256 of the chain of the line before it and of the entry. So no
line can be changed, left out or added without a break there, or else in all lines after it, and the
chain of a checkpoint's entry stands in the checkpoint and in the registry.

There are no times here: a run that was killed and repeats itself bit for bit has the ledger of one
that was not. As in the event log (`events.py`), what is repeated alike is not written twice, and
where a run differs from its past a `cut` abandons the entries before it, from its `nimg` on.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gan_train.adversary import Adversary, Clock
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.files.atomic import append
from gan_train.files.tensors import load_tensors
from gan_train.nn.fingerprint import fingerprint
from gan_train.runs.checkpoint import optimizer_state
from gan_train.runs.environment import Environment
from gan_train.runs.events import end_of_lines, lasting, present

LEDGER = "ledger.jsonl"
_COMPARED = ("step", "next", "networks", "averaged", "optimizers")
PARTS = {"networks": "networks", "averaged": "generator", "optimizers": "optimizers"}
"""The fingerprints of a checkpoint's entry, and the safetensors file that each belongs to."""

Entry = dict[str, Any]

_TRAINED = {"weights", "checkpoint"}
"""Kinds of entries that a run which trains otherwise contradicts."""

_ALWAYS = ("kind", "chain")
_FIELDS: dict[str, dict[str, type]] = {
    "start": {"data": str, "config": dict, "environment": dict},
    "weights": {"networks": str, "curves": str},
    "scores": {"scores": str},
}

log = logging.getLogger(__name__)


# ---- reading -------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A line of the ledger. `entry` is None where it holds none; `sound` says whether the line is
    what was written behind the line before it."""

    number: int
    entry: Entry | None
    sound: bool


def read_lines(run_dir: Path) -> list[Line]:
    """All complete lines of a run's ledger, cuts and abandoned entries included. Empty where there
    is no ledger: an earlier version of the program trained the run."""
    path = run_dir / LEDGER
    found: list[Line] = []
    before: str | None = ""
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        entry = _parse(line)
        # behind a line that cannot be read, nobody knows the chain
        sound = entry is not None and (before is None or line == _encoded(entry, before))
        found.append(Line(len(found) + 1, entry, sound))
        before = entry["chain"] if entry is not None else None
    return found


def read_entries(run_dir: Path) -> list[Entry]:
    """The entries of the run's ledger that no cut abandoned, without the cuts."""
    return present(line.entry for line in read_lines(run_dir) if line.entry is not None)


def started(entries: Iterable[Entry], nimg: int) -> Entry | None:
    """The newest `start` among the present entries at `nimg` images or before: it tells data,
    configuration and environment of what was trained next. None if there is none."""
    starts = [e for e in entries if e["kind"] == "start" and e["nimg"] <= nimg]
    return sorted(starts, key=lambda entry: entry["nimg"])[-1] if starts else None


def entry_of_checkpoint(entries: Iterable[Entry], nimg: int) -> Entry | None:
    """The present entry of the checkpoint at so many images; None if there is none."""
    found = [e for e in entries if (e["kind"], e["nimg"]) == ("checkpoint", nimg)]
    return found[-1] if found else None


def fingerprints(
    adversary: Adversary,
    averaged: Mapping[str, Tensor],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> dict[str, str]:
    """The fingerprints of all that a checkpoint holds, as `of_checkpoint` finds them there."""
    return {
        "networks": fingerprint(adversary.state_dict()),
        "averaged": fingerprint(averaged),
        "optimizers": fingerprint(optimizer_state(adversary, optimizers)),
    }


class Parting(NamedTuple):
    """Where two runs part: the number of images, and what differs there first."""

    nimg: int
    parts: tuple[str, ...]


def compare(recorded: Iterable[Entry], repeated: Iterable[Entry]) -> tuple[int, Parting | None]:
    """Compare the present entries of two ledgers at places that both have: how many are the same
    before the first that differs, and that one; None if none does."""
    other = {(e["kind"], e["nimg"]): e for e in repeated if e["kind"] in _TRAINED}
    both = [(e, other[at]) for e in recorded if (at := (e["kind"], e["nimg"])) in other]
    same = 0
    for one, two in sorted(both, key=lambda pair: pair[0]["nimg"]):
        parts = tuple(k for k in _COMPARED if one.get(k) != two.get(k))
        if parts:
            return same, Parting(one["nimg"], parts)
        same += 1
    return same, None


def of_checkpoint(folder: Path) -> dict[str, str]:
    """The fingerprints of the files of a checkpoint; of one that was thinned, that of the averaged
    networks alone."""
    files = {part: folder / f"{name}.safetensors" for part, name in PARTS.items()}
    return {part: fingerprint(load_tensors(p)) for part, p in files.items() if p.exists()}


def digest(values: Any) -> str:
    """32 hexadecimal digits of a JSON value."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]


def _parse(line: bytes) -> Entry | None:
    """The entry in a line; None if it holds none."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not all(isinstance(entry.get(k), str) for k in _ALWAYS):
        return None
    if type(entry.get("nimg")) is not int or entry["nimg"] < 0:
        return None
    fields = _FIELDS.get(entry["kind"], {})
    if not all(isinstance(entry.get(key), of) for key, of in fields.items()):
        return None
    about = entry.get("environment", {"workers": "1", "threads": "1"})
    numbers = (about.get("workers"), about.get("threads"))
    whole = all(isinstance(n, str) and n.isascii() and n.isdecimal() and int(n) for n in numbers)
    return entry if whole and all(isinstance(value, str) for value in about.values()) else None


def _encoded(entry: Mapping[str, Any], before: str) -> bytes:
    """The line of an entry behind a line with the chain `before`; a chain that the entry has
    already is replaced."""
    text = json.dumps({k: v for k, v in entry.items() if k != "chain"}, sort_keys=True)
    chain = hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()
    return json.dumps(json.loads(text) | {"chain": chain}).encode()


# ---- writing -------------------------------------------------------------------------------------


class Ledger:
    """Appends the entries of one run. An incomplete last line, left by a kill, is removed first.
    Only one process may write the ledger of a run (`run_folder.exclusive`)."""

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LEDGER
        if self.path.exists():
            os.truncate(self.path, end_of_lines(self.path))
        lines = read_lines(run_dir)
        if broken := [line.number for line in lines if not line.sound]:
            log.error(
                "%s is not what was written, first in line %d; gan-train verify %s tells more",
                *(self.path, broken[0], run_dir.name),
            )
        known = [line.entry for line in lines if line.entry is not None]
        self._chain: str = known[-1]["chain"] if known else ""
        self._held: dict[tuple[str, int], list[Entry]] = {}  # the present ones, by kind and nimg
        self._reached = 0  # the largest nimg of those that tell what was trained
        for entry in present(known):
            self._hold(entry)
        self._told: list[Entry] = []  # the entries that this object was given at the newest nimg

    def start(self, nimg: int, config: Config, data: str, environment: Environment) -> None:
        """Enter data, configuration and environment, unless they are those that were entered
        last."""
        told = {
            "data": data,
            "config": config.model_dump(mode="json"),
            "environment": environment,
        }
        last = started((e for held in self._held.values() for e in held), nimg)
        if last is None or any(last[key] != value for key, value in told.items()):
            self._append({"kind": "start", "nimg": nimg, **told})

    def weights(
        self, clock: Clock, sample: str, networks: Mapping[str, Tensor], curves: Mapping[str, Any]
    ) -> None:
        """Enter the networks before the step of this clock, which shows `sample` first. `curves`
        are the values that the event log has at this place."""
        self._append(
            {
                "kind": "weights",
                "nimg": clock.nimg,
                "step": clock.step,
                "next": sample,
                "networks": fingerprint(networks),
                "curves": digest(lasting(curves)),
            }
        )

    def checkpoint(self, clock: Clock, parts: Mapping[str, str]) -> str:
        """Enter a checkpoint that is about to be written, by its fingerprints; returns the chain of
        its entry."""
        entry = {"kind": "checkpoint", "nimg": clock.nimg, "step": clock.step, **parts}
        return self._append(entry)

    def scores(self, nimg: int, scores: Mapping[str, Any]) -> None:
        """Enter the scores of a checkpoint, as the event log has them."""
        self._append({"kind": "scores", "nimg": nimg, "scores": digest(scores)})

    def check(self, folder: Path, clock: Clock) -> None:
        """Compare a checkpoint from which the run is about to go on with its entry. A ledger that
        has none, because it was lost or began later, gets it now.

        Raises UserError where the checkpoint is not what was entered.
        """
        parts = of_checkpoint(folder)
        known = self._held.get(("checkpoint", clock.nimg))
        if known is None:
            self.checkpoint(clock, parts)
            return
        if changed := [name for name, value in parts.items() if known[-1].get(name) != value]:
            run = self.path.parent.name
            raise UserError(
                f"{', '.join(changed)} in {folder} are not what was saved there, although their "
                f"checksums hold: the run's ledger has other fingerprints. Move the folder away, "
                f"and the run goes on from the checkpoint before it; gan-train verify {run} says "
                "what else has changed"
            )

    def _append(self, entry: Entry) -> str:
        """Write an entry unless the ledger has it; returns its chain. An entry that contradicts the
        ledger comes behind a cut: it has other weights at this `nimg`, or none but later ones."""
        if self._told and self._told[0]["nimg"] != entry["nimg"]:
            self._told = []
        known = self._held.get((entry["kind"], entry["nimg"]), [])
        for old in known:
            if {k: v for k, v in old.items() if k != "chain"} == entry:
                self._told.append(old)
                return str(old["chain"])
        lines = [entry]
        if entry["kind"] in _TRAINED and (known or entry["nimg"] < self._reached):
            # the cut also abandons this attempt's own entries at the same nimg: write them again
            lines = [{"kind": "cut", "nimg": entry["nimg"]}, *self._told, entry]
        data, chain = b"", self._chain
        for line in lines:
            encoded = _encoded(line, chain)
            data += encoded + b"\n"
            line["chain"] = chain = json.loads(encoded)["chain"]
        append(self.path, data)
        self._chain = chain
        if len(lines) > 1:
            self._held = {k: held for k, held in self._held.items() if k[1] < entry["nimg"]}
            self._reached = max((k[1] for k in self._held if k[0] in _TRAINED), default=0)
        for line in lines:
            if line["kind"] != "cut":
                self._hold(line)
        self._told.append(entry)
        return self._chain

    def _hold(self, entry: Entry) -> None:
        self._held.setdefault((entry["kind"], entry["nimg"]), []).append(entry)
        if entry["kind"] in _TRAINED:
            self._reached = max(self._reached, entry["nimg"])
