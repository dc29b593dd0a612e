"""Workers that leave their group take its threads with them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist

from gan_train.nn.collectives import end


def threads_of_gloo() -> int:
    names = Path("/proc/self/task").glob("*/comm")
    return sum("gloo" in name.read_text() for name in names)


def _worker(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world)
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight])
    weight.square().sum().backward()
    dist.all_reduce(weight.grad)
    optimizer.step()  # imports what would keep the group
    before = threads_of_gloo()
    end()
    counted = Path(folder) / f"threads-{rank}"
    counted.write_text(f"{before} {threads_of_gloo()}")


def test_no_thread_of_the_group_is_left(tmp_path: Path) -> None:
    # a new interpreter, which has not imported that already
    torch.multiprocessing.spawn(_worker, (2, os.fspath(tmp_path)), nprocs=2)
    for rank in range(2):
        before, after = map(int, (tmp_path / f"threads-{rank}").read_text().split())
        assert before > 0 and after == 0
