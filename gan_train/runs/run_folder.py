"""Run folders, `<workspace>/train/<run>/`: how they are made, named, found and locked.

A run folder holds its configuration, a link to its shards, the event log, samples, checkpoints and
profiles. Other modules ask here for what they need to know of a run. With a workspace in a bucket,
a run folder is this machine's copy (see `shared.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from gan_train import recipes
from gan_train.config import Config
from gan_train.data import shard_cache
from gan_train.errors import UserError
from gan_train.files import locks
from gan_train.files.atomic import write_aside
from gan_train.files.lease import Held, holder_of, leased
from gan_train.files.locks import is_locked, locked_now
from gan_train.files.store import Store, attach, local_copy, origin_of, path_of
from gan_train.runs import claim, shared
from gan_train.runs.events import Event as Event
from gan_train.runs.events import read_events as read_events

CONFIG = "config.yaml"
"""The file with the configuration with which the run was started."""
SHARDS = "shards"
"""The link to the folder of the shards that the run trains on."""
PROFILE = "profile"
"""The folder of the traces that `train.profile_steps` asks for."""


def folder(config: Config) -> Path:
    """The folder in which the runs of a workspace lie."""
    return config.workspace / "train"


def new(config: Config, shards: Path, tell_seed: bool = False) -> Path:
    """Make the folder of a new run, with its configuration and a link to the shards.

    It is named `<recipe>-<date>-<time>`, followed by a number if that name is taken, and with
    `tell_seed` by the seed, as in `demo-20260131-120000-seed7`.
    """
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    seed = f"-seed{config.seed}" if tell_seed else ""
    for attempt in range(100):
        number = f"-{attempt}" if attempt else ""
        run_dir = folder(config) / f"{config.name}-{stamp}{number}{seed}"
        try:
            run_dir.mkdir(parents=True)
        except FileExistsError:  # another run of the same second
            continue
        written = recipes.dump(config).encode()
        if config.store is not None:
            store = store_of(config, run_dir)
            if not store.create(CONFIG, written):  # another machine's run of the same second
                run_dir.rmdir()
                continue
            store.write(SHARDS, shards.relative_to(config.workspace).as_posix().encode())
            attach(run_dir, store)
        write_aside(run_dir / CONFIG, written)
        (run_dir / SHARDS).symlink_to(os.path.relpath(shards, run_dir.resolve()))
        return run_dir
    raise AssertionError("a hundred runs in one second")


def store_of(config: Config, folder: Path) -> Store:
    """Where a folder of the workspace lies in the bucket."""
    assert config.store is not None
    return Store(config.store) / folder.relative_to(config.workspace).as_posix()


def bring_names(store: str, workspace: Path) -> None:
    """Make folders, with the configuration alone, for the runs in the bucket that this machine does
    not know."""
    for name in Store(store).folders("train"):
        run_dir = workspace / "train" / name
        run = Store(store) / f"train/{name}"
        if not (run_dir / CONFIG).exists() and run.look(CONFIG) is not None:
            attach(run_dir, run)
            run.fetch(CONFIG, run_dir / CONFIG)


def _bring(config: Config, run: str, run_dir: Path) -> None:
    """Bring a run, by its name or the path of this machine's copy, and the index of its shards from
    the bucket to a folder, if it is there."""
    copy = folder(config) / run
    if copy.parent != folder(config):  # the path of another folder
        return
    store = store_of(config, copy)
    if store.look(CONFIG) is None:
        return
    attach(run_dir, store)
    shared.bring(run_dir)
    shards = config.workspace / store.read(SHARDS).decode()
    shard_cache.open_folder(shards, store_of(config, shards), config.data.node_cache_gb)
    if not (run_dir / SHARDS).is_symlink():
        (run_dir / SHARDS).symlink_to(os.path.relpath(shards, run_dir.resolve()))


def runs_of(config: Config) -> list[Path]:
    """The folders of all runs of this recipe in its workspace, oldest first.

    Runs of a recipe whose name begins with this one's (`photos-x4-gpu` and `photos-x4`) are left
    out, and so is a folder without a configuration, whose run was killed too early.
    """
    if config.store is not None:
        bring_names(config.store, config.workspace)
    stamped = re.compile(rf"{re.escape(config.name)}-(\d{{8}}-\d{{6}})(?:-(\d+))?(?:-seed\d+)?")
    found = []
    for path in folder(config).glob(f"*/{CONFIG}"):
        if match := stamped.fullmatch(path.parent.name):
            found.append((match[1], int(match[2] or 0), path.parent))
    return [run_dir for _, _, run_dir in sorted(found)]


def all_runs(place: Path | str) -> list[Path]:
    """The folders of all runs in a workspace, newest first. Of runs in a bucket, configuration and
    log are brought to this machine."""
    workspace = path_of(str(place))
    if workspace is None:
        workspace = local_copy(str(place))
        bring_names(str(place), workspace)
        for path in (workspace / "train").glob(f"*/{CONFIG}"):
            shared.bring_log(path.parent)
    found = [path.parent for path in (workspace / "train").glob(f"*/{CONFIG}")]
    return sorted(found, key=lambda run_dir: (run_dir / CONFIG).stat().st_mtime, reverse=True)


def find(config: Config, run: str) -> Path:
    """The folder of the run with this name or path. A run in a bucket is brought to this machine.
    Raises UserError when there is none."""
    if config.store is not None:
        _bring(config, run, folder(config) / run)
    for run_dir in (folder(config) / run, Path(run).absolute()):
        if (run_dir / CONFIG).is_file():
            return run_dir
    place: Path | str = folder(config)
    known = sorted(path.name for path in all_runs(config.workspace))
    if config.store is not None:
        Store(config.store).check()
        place, known = f"{config.store}/train", Store(config.store).folders("train")
    raise UserError(
        f"{run}: no such run in {place}; allowed: "
        + (", ".join(known[-10:]) if known else "none yet, start one with `gan-train run`")
    )


@contextmanager
def as_stored(config: Config, run: str) -> Iterator[Path]:
    """The folder of a run as `find` finds it. Of a run in a bucket, all is brought anew, to a
    folder that goes with the block: this machine's copies may hide what was changed over there."""
    if config.store is None:
        yield find(config, run)
        return
    config.workspace.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="stored-", dir=config.workspace) as scratch:
        run_dir = Path(scratch) / Path(run).name
        _bring(config, run, run_dir)
        yield run_dir if run_dir.exists() else find(config, run)


def configuration(run_dir: Path | str, overrides: Sequence[str] = ()) -> Config:
    """The configuration with which a run was started, changed by `overrides`."""
    return recipes.load(str(Path(run_dir) / CONFIG), overrides)


def configuration_of(target: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run, changed by `overrides`. `target` is the run's name in runs/train,
    its folder, or the folder of one of its checkpoints.

    Raises UserError when no run is found there.
    """
    place = Path(target)
    for run_dir in (Path("runs/train") / target, place, *place.absolute().parents[:2]):
        if (run_dir / CONFIG).is_file():
            return configuration(run_dir, overrides)
    raise UserError(
        f"{target}: no run in runs/train, no folder of a run or a checkpoint; name the folder, or "
        "the configuration to score with: --recipe RECIPE"
    )


def shards_of(run_dir: Path) -> Path:
    """The folder of the shards that a run trains on. Raises UserError when it is gone."""
    directory = (run_dir / SHARDS).resolve()
    if not directory.is_dir():
        raise UserError(f"the shards of {run_dir.name} are gone ({directory}): shard again")
    return directory


@contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Hold the lock of a run while it is trained, because only one process may write its log.

    In a bucket the lock is a lease, which other machines heed. Raises UserError when another
    process holds it.
    """
    with ExitStack() as held:
        store = origin_of(run_dir)
        if store is not None:
            try:
                held.enter_context(leased(store, shared.LEASE, wait=False))
            except Held as holder:
                raise UserError(_held(run_dir, holder)) from None
        try:
            held.enter_context(locked_now(run_dir / ".lock"))
        except locks.Held as holder:
            raise UserError(_held(run_dir, holder)) from None
        yield


def _held(run_dir: Path, holder: Exception) -> str:
    return (
        f"{run_dir.name} is being trained by {holder}: wait until that has ended, stop it, or "
        "start a run of its own without --resume"
    )


def is_trained_now(run_dir: Path) -> bool:
    """Whether a process holds the lock of the run, to train or to score it, or still trains it
    although the process that started it is gone."""
    store = origin_of(run_dir)
    if is_locked(run_dir / ".lock") or claim.holder_of(run_dir) is not None:
        return True
    return store is not None and holder_of(store, shared.LEASE) is not None


def reached(events: Iterable[Event]) -> int:
    """The number of images on which the newest scored checkpoint was trained; 0 without one."""
    return max((e["nimg"] for e in events if e["kind"] == "checkpoint"), default=0)


def finished(events: Iterable[Event]) -> bool:
    """Whether the run came to the end of its schedule, and was not stopped before."""
    ends = [event["status"] for event in events if event["kind"] == "end"]
    return ends[-1:] == ["finished"]


def score_table(run_dir: Path) -> list[dict[str, Any]]:
    """One row for each scored checkpoint, oldest first: `kimg`, the scores, and, for a family that
    grows, `resolution` and `alpha`.

    The rows come from the event log.
    """
    rows = {}
    for event in read_events(run_dir):
        if event["kind"] == "checkpoint":
            level = {k: event[k] for k in ("resolution", "alpha") if k in event}
            rows[event["nimg"]] = {"kimg": event["nimg"] / 1000, **level, **event["scores"]}
    return [rows[nimg] for nimg in sorted(rows)]


def newest_grid(run_dir: Path) -> Path | None:
    """The newest sample grid of a run; None if there is none."""
    return max((run_dir / "samples").glob("*.png"), default=None)


def newest_trace(run_dir: Path) -> Path | None:
    """The newest trace of a run's profiled steps; None if there is none."""
    traces = (run_dir / PROFILE).glob("trace-*")
    return max(traces, key=lambda path: path.stat().st_mtime_ns, default=None)
