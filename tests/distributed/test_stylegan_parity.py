"""StyleGAN on one worker or two, whole or in micro-batches: the same training in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gan_train.config import Config
from gan_train.runs.runtime import PlainRuntime
from tests.training import run, run_workers, stylegan, tiny_config, weights


def _train(config: Config, run_dir: Path) -> None:
    run(config, run_dir, PlainRuntime(run_dir))


@pytest.mark.parametrize("generation", [1, 2])
def test_workers_and_micro_batches_agree(
    generation: int, tiny_source: Path, tmp_path: Path
) -> None:
    """Noise, mixing, path length, R1, augmentation and all running statistics, to 1e-10."""

    def config(**changes: Any) -> Config:
        return tiny_config(
            tiny_source,
            tmp_path,
            family=stylegan(generation),
            data__resolution=16,
            train__precision="float64",
            **changes,
        )

    found = {"one": weights(run(config(), tmp_path / "one"))}
    found["parts"] = weights(run(config(train__accumulate=2), tmp_path / "parts"))
    run_workers(2, tmp_path, _train, config(), tmp_path / "two")
    found["two"] = weights(tmp_path / "two")
    for way in ("parts", "two"):
        assert found[way].keys() == found["one"].keys()
        for name, value in found[way].items():
            # pending: a sum over the micro-batches, and their number
            if way == "two" or not name.startswith("pending_"):
                torch.testing.assert_close(
                    value, found["one"][name], rtol=0, atol=1e-10, msg=f"{way} {name}"
                )
    assert float(found["one"]["augment_p"]) != 0.5
