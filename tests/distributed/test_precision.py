"""Workers on different machines train in the same format: bf16 only where it pays for all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch.distributed

from gan_train.config import Config
from gan_train.runs.runtime import PlainRuntime
from gan_train.training import precision
from tests.training import run_workers, tiny_config


def _settle(config: Config, folder: Path, gains: tuple[float, ...]) -> None:
    gain = gains[torch.distributed.get_rank()]
    precision.unit_of = lambda device: "amx_bf16"
    precision.bf16_gain = lambda device: gain
    runtime = PlainRuntime(folder)
    chosen = precision.settle(config, runtime).train.precision
    (folder / f"rank-{runtime.rank}").write_text(chosen)


@pytest.mark.parametrize(
    ("gains", "chosen"), [((4.0, 4.0), "bf16"), ((4.0, 0.1), "float32"), ((0.1, 4.0), "float32")]
)
def test_all_workers_agree(
    gains: tuple[float, ...], chosen: str, tiny_source: Path, tmp_path: Path
) -> None:
    config = tiny_config(tiny_source, tmp_path, train__precision="auto")
    run_workers(2, tmp_path, _settle, config, tmp_path, gains)
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == [chosen] * 2
