"""Workers without an engine: processes of this machine that join as the workers of a run do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed
import torch.multiprocessing
from torch.multiprocessing.spawn import start_processes

from gan_train.config import Config
from gan_train.runs.runtime import PlainRuntime

Runtime = TypeVar("Runtime", bound=PlainRuntime)


def started(function: Callable[..., None], arguments: tuple[Any, ...], count: int) -> Any:
    """Start `function(number, *arguments)` in so many processes; returns their context.

    They are forked from a process that has imported the function's module once for all of them.
    """
    torch.multiprocessing.set_forkserver_preload([function.__module__])
    return start_processes(function, arguments, nprocs=count, join=False, start_method="forkserver")


def kill(processes: Any) -> None:
    """End the processes of a context that still run."""
    for process in processes.processes:
        process.kill()
        process.join()


def joined(
    rank: int,
    world: int,
    threads: int,
    folder: str,
    config: Config,
    runtime: type[Runtime],
) -> Runtime:
    """The runtime of this process as worker `rank` of `world`, with so many threads.

    All workers name the same new `folder`. As with Ray, all of them have a GPU or none has.
    """
    torch.set_num_threads(threads)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    gpu: str = config.cluster.gpu
    if gpu == "auto" and torch.cuda.device_count() < world:
        gpu = "no"
    if world > 1:
        meeting = f"file://{folder}/rendezvous"
        backend = "nccl" if gpu != "no" else "gloo"
        torch.distributed.init_process_group(backend, meeting, rank=rank, world_size=world)
    return runtime(Path(folder), gpu)
