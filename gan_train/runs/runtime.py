"""The interface between the trainer and the engine that launched it.

A runtime says which worker this process is and where the run folder lies, and takes reports of
progress. `PlainRuntime` serves one process and torchrun; the runtime for Ray is in
`pipelines/compute/training.py`.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Protocol

import torch

from gan_train.errors import UserError


class Runtime(Protocol):
    """What the trainer needs from the engine that launched it."""

    rank: int
    world_size: int
    device: torch.device
    run_dir: Path
    """The run folder. Every worker, and the process that launched them, can read and write it."""

    def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Report progress to the engine. Every worker calls this at the same points."""

    def should_stop(self) -> bool:
        """Whether this run was asked to stop; the trainer then saves a checkpoint and returns."""


def _device(gpu: str, local_rank: int) -> torch.device:
    found = torch.cuda.device_count() if gpu != "no" else 0
    if found == 0 and gpu != "yes":
        return torch.device("cpu")
    if local_rank >= found:
        raise UserError(
            f"process {local_rank + 1} of this machine has no GPU of its own, there are {found}: "
            "start as many processes as GPUs, or add --set cluster.gpu=no"
        )
    return torch.device("cuda", local_rank)


def device_name(device: torch.device) -> str:
    """The name of the GPU or of the processor, such as `NVIDIA H100` or `AMD EPYC 7763`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # another system than Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


class PlainRuntime:
    """Serves one plain process, or those that torchrun starts (RANK, WORLD_SIZE, LOCAL_RANK)."""

    def __init__(self, run_dir: Path, gpu: str = "auto") -> None:
        """`gpu` is `cluster.gpu`: "auto" takes a GPU where there is one, "yes" needs one, and "no"
        leaves it alone.

        Raises UserError where a GPU is wanted and this process has none of its own.
        """
        self.run_dir = run_dir
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.device = _device(gpu, int(os.environ.get("LOCAL_RANK", 0)))
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world_size > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
        """Do nothing: there is no engine, and the event log has the same values."""

    def should_stop(self) -> bool:
        """Return False: there is no engine that could ask for it."""
        return False
