"""Opens a data set in a process of its own: the time to the first batch, and the memory it takes.

`python -m gan_train.bench.data_probe ROOT LOADER WORKERS` prints the figures as one line of JSON.
Memory is read from /proc, which Linux has.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from pathlib import Path

import torch

from gan_train.bench.data_forms import LOADERS

BATCHES = 100
"""Memory is read after so many batches: pages that forked processes share are copied by use."""


def memory(process: int | str = "self") -> dict[str, int]:
    """What /proc tells of a process's memory, in bytes: `Pss` counts a page that n processes share
    as the n-th part of a page, `Private_Clean` and `Private_Dirty` are the process's alone."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines}


def _alone(process: int) -> int:
    found = memory(process)
    return found["Private_Clean"] + found["Private_Dirty"]


def main(arguments: list[str]) -> None:
    """Print seconds of CPU time until the first batch, the growth of this process's memory, and the
    memory of each loader process that is shared with no other, in bytes."""
    root, name, workers = Path(arguments[0]), arguments[1], int(arguments[2])
    torch.set_num_threads(1)
    before, begun = memory()["Pss"], time.process_time()
    batches = LOADERS[name](root, workers)
    next(batches)
    first = time.process_time() - begun
    for _ in range(BATCHES):
        next(batches)
    children = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    told = {
        "first_batch_s": first,
        "grown": memory()["Pss"] - before,
        "workers": [_alone(child) for child in children],
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
