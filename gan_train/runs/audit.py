"""Checks the files of a run against its ledger, without training: what of it is not what was
written, and in which stretch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gan_train.errors import UserError
from gan_train.files.digests import sha256_of
from gan_train.files.store import origin_of
from gan_train.runs.checkpoint import PRUNED, list_generators
from gan_train.runs.events import lasting, read_events
from gan_train.runs.integrity import MANIFEST, Damaged, find_damage, read_manifest, read_state
from gan_train.runs.ledger import (
    LEDGER,
    PARTS,
    Entry,
    digest,
    entry_of_checkpoint,
    of_checkpoint,
    read_entries,
    read_lines,
)
from gan_train.runs.run_folder import finished

GENERATOR = ("generator.json", "generator.safetensors")
"""The files of a checkpoint that are its generator."""


class Finding(NamedTuple):
    """Something that is not what was written, and the images between which it lies."""

    begin: int
    end: int
    words: str


def broken_lines(run_dir: Path, _: list[Entry]) -> Iterator[Finding]:
    """Lines of the ledger that were changed, left out, added or damaged."""
    reached = 0
    for line in read_lines(run_dir):
        nimg = line.entry["nimg"] if line.entry is not None else reached
        if not line.sound:
            what = "was changed, or lines before it are gone" if line.entry else "cannot be read"
            where = min(reached, nimg), max(reached, nimg)
            yield Finding(*where, f"line {line.number} of {LEDGER} {what}")
        reached = nimg


def changed_events(run_dir: Path, entries: list[Entry]) -> Iterator[Finding]:
    """Curves and scores in the event log that are not those the ledger has digests of.

    Scores that were measured anew after training are not in the ledger, and are no finding. Where a
    run in a bucket has not come to an end, neither is what the log lacks at its own end: it is sent
    behind the ledger.
    """
    events = read_events(run_dir)
    if origin_of(run_dir) is not None and not finished(events):
        told = max((e["nimg"] for e in events), default=0)
        stopped = any(e["kind"] == "end" and e["nimg"] == told for e in events)
        entries = [e for e in entries if e["nimg"] < told + stopped]
    curves = {e["nimg"]: e["curves"] for e in entries if e["kind"] == "weights"}
    if not curves:
        return
    logged = {e["nimg"]: e["values"] for e in events if e["kind"] == "metrics"}
    before = min(e["nimg"] for e in entries)
    for nimg in sorted(curves.keys() | {n for n in logged if before <= n <= max(curves)}):
        if nimg not in logged:
            yield Finding(before, nimg, "the curves in the event log are gone")
        elif nimg not in curves:
            yield Finding(before, nimg, "the event log has curves that the ledger does not have")
        elif digest(lasting(logged[nimg])) != curves[nimg]:
            yield Finding(before, nimg, "the curves in the event log were changed")
        before = nimg
    scored = {(e["nimg"], digest(e["scores"])) for e in events if e["kind"] == "checkpoint"}
    for entry in entries:
        if entry["kind"] == "scores" and (entry["nimg"], entry["scores"]) not in scored:
            where = entry["nimg"], entry["nimg"]
            yield Finding(*where, "the scores in the event log were changed, or are gone")


def changed_checkpoints(run_dir: Path, entries: list[Entry]) -> Iterator[Finding]:
    """Checkpoints that are damaged, or hold other tensors than the ledger has fingerprints of."""
    known = {e["nimg"]: e for e in entries if e["kind"] == "checkpoint"}
    first = min((e["nimg"] for e in entries), default=0)
    for folder in reversed(list_generators(run_dir)):
        nimg = int(folder.name)
        if nimg < first:  # from before there was a ledger
            continue
        if words := _fault(folder, known.get(nimg)):
            yield Finding(nimg, nimg, f"{folder.relative_to(run_dir)}: {words}")


def _fault(folder: Path, entry: Entry | None) -> str | None:
    """What is wrong with a checkpoint, in words; None if nothing is."""
    if entry is None:
        return "the ledger does not have it"
    if not (folder / PRUNED).exists():
        if damage := find_damage(folder):
            return damage
        try:
            chain = read_state(folder).ledger
        except Damaged as damage:
            return str(damage)
        if chain is not None and chain != entry["chain"]:
            return "it stands elsewhere in the ledger: one of the two was made anew"
    found = of_checkpoint(folder)
    changed = [PARTS[part] for part, value in found.items() if entry.get(part) != value]
    if changed:
        files = ", ".join(f"{name}.safetensors" for name in changed)
        return f"{files}: not the tensors that were saved"
    return None


def generator_damage(folder: Path) -> str | None:
    """Why the generator in a folder is not the one that was trained, in words; None if it is, or if
    nothing tells. A checkpoint's checksums do, or, where it was thinned and has none, the ledger of
    its run.

    Raises UserError where a newer version of the program wrote it.
    """
    if lacking := [name for name in GENERATOR if not (folder / name).is_file()]:
        return f"{lacking[0]} is missing"
    try:
        manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    except Damaged as damage:
        return str(damage)
    if manifest:
        changed = [name for name in GENERATOR if sha256_of(folder / name) != manifest[name]]
        return f"{changed[0]} is not what was written (checksum differs)" if changed else None
    if not folder.name.isdigit():
        return None
    entry = entry_of_checkpoint(read_entries(folder.parents[1]), int(folder.name))
    try:
        averaged = of_checkpoint(folder)["averaged"]
    except UserError as error:
        return str(error)
    same = entry is None or averaged == entry.get("averaged")
    return None if same else f"{GENERATOR[1]}: not the tensors that were saved"
