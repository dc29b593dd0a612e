"""Trains stretches of a run again, each from a checkpoint or the start, and compares ledgers.

A replay is an ordinary training in a folder of its own, which is deleted afterwards: nothing is
written into the run's folder. With several workers, as many processes of this machine join as the
run had workers, because sums over other shares are rounded otherwise.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from gan_train import recipes
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.errors import UserError
from gan_train.nn.collectives import end
from gan_train.runs.checkpoint import FOLDER, list_checkpoints
from gan_train.runs.ledger import Entry, Parting, compare, read_entries, started
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.trainer import train
from gan_train.training.workers import joined, kill
from gan_train.training.workers import started as processes

_LEAST = {
    # checkpoints are compared, and neither kept nor judged
    "evaluate.metrics": ["diversity"],
    "evaluate.images": 8,
    "train.keep_checkpoints": 1,
    "train.profile_steps": 0,
}


class Stretch(NamedTuple):
    """The images from `begin` to `end`, from the checkpoint in `folder`; from the start of the run
    if that is None."""

    begin: int
    end: int
    folder: Path | None


class Replayed(NamedTuple):
    """How many entries came out the same, and where the first one did not."""

    same: int
    parting: Parting | None


def stretches(
    run_dir: Path, entries: Sequence[Entry], begin: int, until: int, avoid: Collection[str]
) -> list[Stretch]:
    """Stretches that cover the images from `begin` to `until`, and may begin before and end after:
    they go from checkpoint to checkpoint, and the last one to an entry.

    Checkpoints with a name in `avoid` are left out, and so are thinned ones. Raises UserError where
    no checkpoint is left to begin with.
    """
    places = {int(f.name): f for f in list_checkpoints(run_dir) if f.name not in avoid}
    known = sorted({e["nimg"] for e in entries if e["kind"] != "start"})
    ends = [nimg for nimg in known if nimg >= until][:1] or known[-1:]
    first = min(e["nimg"] for e in entries)
    starts: dict[int, Path | None] = {n: f for n, f in places.items() if n >= first}
    if first == 0:
        starts[0] = None
    before = [nimg for nimg in starts if nimg <= begin]
    if not before:
        earliest = min(starts, default=None)
        allowed = "there is none" if earliest is None else f"the first is at {earliest / 1000:g}"
        raise UserError(
            f"{run_dir.name} has no checkpoint at {begin / 1000:g} kimg or before from which its "
            f"ledger could be repeated: {allowed}"
        )
    bounds = [nimg for nimg in sorted(starts) if max(before) <= nimg < ends[0]]
    return [
        Stretch(nimg, following, starts[nimg])
        for nimg, following in zip(bounds, [*bounds[1:], *ends], strict=True)
    ]


def replay(stretch: Stretch, entries: Sequence[Entry], shards: Path) -> Replayed:
    """Train a stretch again. `entries` are the present ones of the run's ledger, and `shards` the
    folder of its data. It ends soon after an entry that comes out otherwise.

    Raises UserError where the data are others, and as the trainer does.
    """
    index = Index.load(shards)
    wanted = [e for e in entries if stretch.begin < e["nimg"] <= stretch.end]
    # where the run was resumed otherwise than before, so is the replay
    resumed = {e["nimg"] for e in wanted if e["kind"] == "start"} - {stretch.end}
    at = stretch.begin
    with tempfile.TemporaryDirectory(prefix="gan-train-") as scratch:
        if stretch.folder is not None:
            shutil.copytree(stretch.folder, Path(scratch) / FOLDER / stretch.folder.name)
        for until in [*sorted(resumed), stretch.end]:
            start = started(entries, at)
            if start is None:
                raise UserError(
                    f"the ledger does not tell what was trained at {at / 1000:g} kimg: its line is "
                    "gone or damaged. Bring the file back from a copy, or from MLflow"
                )
            if start["data"] != index.content_hash:
                raise UserError(
                    f"{shards} holds other data (content hash {index.content_hash[:12]}) than the "
                    f"run was trained on ({start['data'][:12]}): restore them"
                )
            _train(start, until, wanted, index, shards, scratch)
            replayed = Replayed(*compare(wanted, read_entries(Path(scratch))))
            if replayed.parting is not None:
                break
            at = until
    return replayed


class _Watching(PlainRuntime):
    """Ends the training once its ledger differs from the one that is wanted."""

    wanted: Sequence[Entry] = ()
    parted = False

    def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        if self.rank == 0:
            self.parted = compare(self.wanted, read_entries(self.run_dir))[1] is not None

    def should_stop(self) -> bool:
        return self.parted


def _train(
    start: Entry, until: int, wanted: Sequence[Entry], index: Index, shards: Path, scratch: str
) -> None:
    """Train on in the folder `scratch` until so many images, as the run did after `start`."""
    about = start["environment"]
    world, threads = int(about["workers"]), int(about["threads"])
    changes = {"workspace": scratch, "train.total_kimg": until / 1000, "train.threads": threads}
    config = recipes.change(recipes.check(start["config"]), _LEAST | changes)
    if world == 1:
        alone = _Watching(Path(scratch), config.cluster.gpu)
        alone.wanted = wanted
        train(config, index, shards, alone)
        return
    (Path(scratch) / "rendezvous").unlink(missing_ok=True)
    arguments = (world, threads, scratch, config, wanted, shards)
    workers = processes(_worker, arguments, world)
    try:
        while not workers.join():
            pass
    finally:
        kill(workers)


def _worker(
    rank: int,
    world: int,
    threads: int,
    scratch: str,
    config: Config,
    wanted: Sequence[Entry],
    shards: Path,
) -> None:
    runtime = joined(rank, world, threads, scratch, config, _Watching)
    runtime.wanted = wanted
    train(config, Index.load(shards), shards, runtime)
    end()
