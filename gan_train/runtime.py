"""The engine seam: who this process is among the workers, where the run lives, whom to tell.

`PlainRuntime` serves one process and torchrun. Ray's lives in `pipelines/ray_train.py`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import torch


class Runtime(Protocol):
    """What the trainer asks of whatever launched it."""

    rank: int
    world_size: int
    device: torch.device
    run_dir: Path
    """A folder that every worker and the driver see: checkpoints, samples, event log."""

    def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Tell the engine of progress; every rank calls it at the same points."""

    def should_stop(self) -> bool:
        """True when this run was asked to stop: the trainer saves a checkpoint and returns."""


class PlainRuntime:
    """One plain process, or the processes that torchrun started (RANK, WORLD_SIZE, LOCAL_RANK)."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        if torch.cuda.is_available():
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(self.device)
        else:
            self.device = torch.device("cpu")
        if self.world_size > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Nobody to tell: the event log in `run_dir` has it all."""

    def should_stop(self) -> bool:
        return False
