"""Trains a recipe, in this process or under torchrun, and does nothing else.

    python -m gan_train demo --set train.total_kimg=20
    torchrun --nproc-per-node 2 -m gan_train demo

It needs neither Ray nor Prefect nor MLflow, so it neither restarts workers nor registers models. It
shards the data first if that was not done. Ctrl-C, SIGTERM and a closed terminal save a checkpoint
and end the run with status 130, 143 or 129; `--resume RUN` goes on with it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import uuid
from pathlib import Path
from typing import NamedTuple

from gan_train import recipes
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.errors import UserError, hide_tracebacks, told
from gan_train.nn.collectives import broadcast_text, end
from gan_train.runs import run_folder, stop_signals
from gan_train.runs.claim import claimed, wait_until_free
from gan_train.runs.runtime import PlainRuntime
from gan_train.text import VisibleFormatter
from gan_train.training.trainer import train

log = logging.getLogger("gan_train")


class SignalledRuntime(PlainRuntime):
    """Asks the trainer to save a checkpoint and end once a signal has come."""

    signalled: signal.Signals | None = None

    def stop(self, number: signal.Signals) -> None:
        """Remember a signal."""
        log.warning("%s: a checkpoint is saved; the second one ends at once", number.name)
        self.signalled = number

    def should_stop(self) -> bool:
        """Whether a signal has come."""
        return self.signalled is not None


class Trained(NamedTuple):
    """How a plain training ended: its run's folder, and the exit status, which is 0 at the end of
    the schedule and `stop_signals.status_of` the signal that stopped it."""

    run_dir: Path
    status: int


def train_plain(config: Config, resume: str | None = None, shards: Path | None = None) -> Trained:
    """Shard where needed, or take the given shards, and train on the workers that torchrun started.

    Rank 0 alone reads the data and the run folders, and tells the other ranks where the shards and
    the run are. When torchrun restarts the workers, they go on with the newest run of the recipe.
    SIGINT, SIGTERM and SIGHUP save a checkpoint and end the training (`stop_signals.heard`); before
    there is anything to save, they end the process.
    Raises UserError as the trainer does, and when another process is training the run.
    """
    config = recipes.with_absolute_paths(config)
    if config.store is not None:
        raise UserError(
            f"workspace={config.store}: without Ray, training writes to a folder; name one with "
            "--set workspace=FOLDER, or train with Ray"
        )
    runtime = SignalledRuntime(config.workspace, config.cluster.gpu)  # joins the other workers
    directory, run_dir = Path(), Path()
    with contextlib.ExitStack() as held:
        if runtime.rank == 0:
            directory = shards or shard(config.data, config.workspace)
            run_dir = _run_of(config, resume, directory)
            held.enter_context(run_folder.exclusive(run_dir))
            wait_until_free(run_dir)
            held.enter_context(claimed(run_dir, uuid.uuid4().hex))
        directory = Path(broadcast_text(str(directory), runtime.device))
        runtime.run_dir = Path(broadcast_text(str(run_dir), runtime.device))
        with stop_signals.heard(runtime.stop):
            finished = train(config, Index.load(directory), directory, runtime)
            end()
    if finished:
        return Trained(runtime.run_dir, 0)
    log.warning("stopped; go on with --resume %s", runtime.run_dir.name)
    # without a signal of its own, this worker ended because another one had it
    return Trained(runtime.run_dir, stop_signals.status_of(runtime.signalled or signal.SIGTERM))


def _run_of(config: Config, resume: str | None, shards: Path) -> Path:
    """The folder of the run to go on with, or of a new run."""
    if resume is not None:
        return run_folder.find(config, resume)
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
    if restarted and (earlier := run_folder.runs_of(config)):
        return earlier[-1]
    return run_folder.new(config, shards)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gan_train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a YAML file, or the name of one in configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run")
    parser.add_argument("--debug", action="store_true", help="show errors with their traceback")
    given = parser.parse_args(arguments)
    if not given.debug:
        hide_tracebacks()
    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        trained = train_plain(recipes.load(given.recipe, given.overrides), given.resume)
    except (UserError, OSError, FloatingPointError) as error:
        return told(error, given.debug)
    except KeyboardInterrupt:  # before the training began
        print("gan-train: stopped", file=sys.stderr)
        return stop_signals.status_of(signal.SIGINT)
    log.info("samples and checkpoints: %s", trained.run_dir)
    return trained.status


if __name__ == "__main__":
    sys.exit(main())
