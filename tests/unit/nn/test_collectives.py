"""What the workers tell each other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gan_train.nn.collectives import broadcast_text
from tests.training import run_workers

TEXTS = ("", "/runs/démo-1", "x" * 3000)


def _hear(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    for i, text in enumerate(TEXTS):
        heard = broadcast_text(text if rank == 0 else f"of worker {rank}", torch.device("cpu"))
        (folder / f"{rank}-{i}").write_text(heard)


@pytest.mark.parametrize("world", [1, 2])
def test_every_worker_hears_the_text_of_rank_0(world: int, tmp_path: Path) -> None:
    run_workers(world, tmp_path, _hear, tmp_path)
    for rank in range(world):
        assert tuple((tmp_path / f"{rank}-{i}").read_text() for i in range(3)) == TEXTS
