"""`gan-train verify`: a run against its ledger, first its files and then what it trained."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from gan_train import recipes
from gan_train.errors import UserError
from gan_train.runs import run_folder
from gan_train.runs.audit import broken_lines, changed_checkpoints, changed_events
from gan_train.runs.environment import differences, machine
from gan_train.runs.ledger import LEDGER, Entry, read_entries, started
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.replay import replay, stretches


class Row(NamedTuple):
    """What was found in the images from `begin` to `end`: how many entries of the ledger are the
    same there, None where nothing was repeated, and in words what is not, if that is not empty."""

    begin: int
    end: int
    same: int | None
    fault: str


def check_files(run_dir: Path) -> Iterator[Row]:
    """Yield what in the files of a run is not what was written.

    Raises UserError where the run has no ledger.
    """
    entries = read_entries(run_dir)
    if not entries:
        raise UserError(
            f"{run_dir.name} has no {LEDGER}: an earlier version of gan-train trained it, or the "
            "file was deleted. What was not written down cannot be checked; a new run writes one"
        )
    faults = broken_lines, changed_events, changed_checkpoints
    for finding in (finding for find in faults for finding in find(run_dir, entries)):
        yield Row(finding.begin, finding.end, None, finding.words)


def repeat(run_dir: Path, begin: int = 0, until: int | None = None) -> Iterator[Row]:
    """Train a run again from `begin` to `until` images, or to its end; yield a row for each stretch
    as soon as it is known.

    Raises UserError where there is nothing to begin with, or to compare with.
    """
    entries = read_entries(run_dir)
    shards = run_folder.shards_of(run_dir)
    last = max(entry["nimg"] for entry in entries)
    bad = {f"{finding.begin:012d}" for finding in changed_checkpoints(run_dir, entries)}
    for stretch in stretches(run_dir, entries, begin, last if until is None else until, bad):
        replayed = replay(stretch, entries, shards)
        fault = ""
        if replayed.parting is not None:
            parts = ", ".join(replayed.parting.parts)
            fault = f"{parts} differ from {replayed.parting.nimg / 1000:g} kimg on"
        yield Row(stretch.begin, stretch.end, replayed.same, fault)


def environments(run_dir: Path, begin: int = 0) -> list[str]:
    """In words, what of the environment in which the run was trained from `begin` images on differs
    from this machine's: why a replay may be rounded otherwise. Empty if nothing does."""
    entries: list[Entry] = read_entries(run_dir)
    found: dict[str, None] = {}
    first = started(entries, begin)
    later = [e for e in entries if e["kind"] == "start" and e["nimg"] > begin]
    for start in [*([first] if first else []), *later]:
        config = recipes.check(start["config"])
        here = machine(PlainRuntime(run_dir, config.cluster.gpu).device)
        for key, (then, now) in differences(start["environment"], here).items():
            found[f"{key}: {then} recorded, {now} here"] = None
    return list(found)
