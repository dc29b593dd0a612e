"""Training alone: `python -m gan_train RECIPE`, in this process or under torchrun.

    python -m gan_train demo --set train.total_kimg=20
    torchrun --nproc-per-node 2 -m gan_train demo

Needs neither Ray nor Prefect nor MLflow. Shards first if that was not done; Ctrl-C and SIGTERM
save a checkpoint; `--resume RUN` goes on. What is left out: restarts, scores in a registry, flows.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import torch
import torch.distributed

from gan_train import recipes
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.sharding import plan_shards, shard
from gan_train.errors import UserError
from gan_train.nn.collectives import all_sum, barrier, end
from gan_train.runs import run_folder
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.trainer import train

log = logging.getLogger("gan_train")


class SignalledRuntime(PlainRuntime):
    """Asks the trainer to save and end on the first SIGINT or SIGTERM; the second one kills."""

    def __init__(self, run_dir: Path, gpu: str) -> None:
        super().__init__(run_dir, gpu)
        self.signalled = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True
        signal.signal(number, signal.SIG_DFL)

    def should_stop(self) -> bool:
        return self.signalled


def train_plain(config: Config, resume: str | None = None) -> Path:
    """Shard where needed, then train on as many workers as torchrun started; the run's folder.

    torchrun's own restarts resume the run they belong to. Raises UserError as the trainer does.
    """
    config = recipes.with_absolute_paths(config)
    runtime = SignalledRuntime(config.workspace, config.cluster.gpu)  # joins the other workers
    if runtime.rank == 0:
        shards = shard(config.data, config.workspace)
    barrier()
    if runtime.rank != 0:
        shards = plan_shards(config.data, None, config.workspace).directory
    if resume is None and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        resume = max(run_folder.folder(config).glob(f"{config.name}-*")).name
    if resume is not None:
        runtime.run_dir = run_folder.find(config, resume)
    else:
        # all workers name the run by rank 0's clock
        now = torch.tensor([int(time.time()) if runtime.rank == 0 else 0], device=runtime.device)
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(int(all_sum(now).item())))
        runtime.run_dir = run_folder.folder(config) / f"{config.name}-{stamp}"
        if runtime.rank == 0:
            runtime.run_dir = run_folder.new(config, shards, stamp)
        barrier()
    train(config, Index.load(shards), shards, runtime)
    end()
    return runtime.run_dir


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gan_train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a YAML file, or the name of one in configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run_dir = train_plain(recipes.load(given.recipe, given.overrides), given.resume)
    except UserError as error:
        print(f"gan-train: {error}", file=sys.stderr)
        return 2
    log.info("samples and checkpoints: %s", run_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
