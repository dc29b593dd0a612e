"""Run folders: `<workspace>/train/<run>/` with config.yaml, events, samples and checkpoints."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from gan_train import recipes
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.files.atomic import write_aside
from gan_train.files.locks import locked_now
from gan_train.runs.events import Event as Event
from gan_train.runs.events import read_events as read_events

CONFIG = "config.yaml"
SHARDS = "shards"
PROFILE = "profile"


def folder(config: Config) -> Path:
    """Where the runs of a workspace lie."""
    return config.workspace / "train"


def new(config: Config, shards: Path) -> Path:
    """Make the folder of a new run, named `<recipe>-<date>-<time>`: its configuration, and a link
    to the shards it trains on. The second run of one second gets a number behind its name."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    for attempt in range(100):
        run_dir = folder(config) / (f"{config.name}-{stamp}" + (f"-{attempt}" if attempt else ""))
        try:
            run_dir.mkdir(parents=True)
        except FileExistsError:  # another run of the same second
            continue
        write_aside(run_dir / CONFIG, recipes.dump(config).encode())
        (run_dir / SHARDS).symlink_to(os.path.relpath(shards, run_dir.resolve()))
        return run_dir
    raise AssertionError("a hundred runs in one second")


def runs_of(config: Config) -> list[Path]:
    """The folders of all runs of this recipe in its workspace, oldest first. The runs of a recipe
    whose name only begins alike (`photos-x4-gpu` beside `photos-x4`) are not among them."""
    stamped = re.compile(rf"{re.escape(config.name)}-(\d{{8}}-\d{{6}})(?:-(\d+))?")
    found = []
    for path in folder(config).glob(f"*/{CONFIG}"):
        if match := stamped.fullmatch(path.parent.name):
            found.append((match[1], int(match[2] or 0), path.parent))
    return [run_dir for _, _, run_dir in sorted(found)]


def find(config: Config, run: str) -> Path:
    """The folder of a run by its name (or its path). Raises UserError when there is none."""
    for run_dir in (folder(config) / run, Path(run).absolute()):
        if (run_dir / CONFIG).is_file():
            return run_dir
    known = sorted(path.parent.name for path in folder(config).glob(f"*/{CONFIG}"))
    raise UserError(
        f"{run}: no such run in {folder(config)}; allowed: "
        + (", ".join(known[-10:]) if known else "none yet, start one with `gan-train run`")
    )


def configuration(run_dir: Path | str, overrides: Sequence[str] = ()) -> Config:
    """The configuration that a run was started with."""
    return recipes.load(str(Path(run_dir) / CONFIG), overrides)


def configuration_of(target: str, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a run (its name in ./runs, or its folder) or of a checkpoint's run.

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
    """The shards that a run trains on. Raises UserError when they are gone."""
    directory = (run_dir / SHARDS).resolve()
    if not directory.is_dir():
        raise UserError(f"the shards of {run_dir.name} are gone ({directory}): shard again")
    return directory


@contextmanager
def exclusive(run_dir: Path) -> Iterator[None]:
    """Raise UserError if another process is training this run: two would write one log."""
    with ExitStack() as held:
        try:
            held.enter_context(locked_now(run_dir / ".lock"))
        except BlockingIOError:
            raise UserError(f"{run_dir.name} is being trained by another process") from None
        yield


def reached(events: Iterable[Event]) -> int:
    """Images seen by the newest checkpoint, from which a run goes on."""
    return max((e["nimg"] for e in events if e["kind"] == "checkpoint"), default=0)


def finished(events: Iterable[Event]) -> bool:
    """Whether the run came to the end of its schedule, and was not stopped on the way."""
    ends = [event["status"] for event in events if event["kind"] == "end"]
    return ends[-1:] == ["finished"]


def score_table(run_dir: Path) -> list[dict[str, Any]]:
    """A row for each scored checkpoint, oldest first: kimg, level, fade and the scores.

    Comes from the event log, so that checkpoints which were thinned out since are in it too.
    """
    rows = {}
    for event in read_events(run_dir):
        if event["kind"] == "checkpoint":
            level = {k: event[k] for k in ("resolution", "alpha") if k in event}
            rows[event["nimg"]] = {"kimg": event["nimg"] / 1000, **level, **event["scores"]}
    return [rows[nimg] for nimg in sorted(rows)]


def newest_grid(run_dir: Path) -> Path | None:
    """The newest sample grid of a run."""
    return max((run_dir / "samples").glob("*.png"), default=None)


def newest_trace(run_dir: Path) -> Path | None:
    """The newest profile of some of a run's steps (`train.profile_steps`)."""
    traces = (run_dir / PROFILE).glob("trace-*")
    return max(traces, key=lambda path: path.stat().st_mtime_ns, default=None)
