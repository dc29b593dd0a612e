"""What only a machine with a GPU can show: `pytest -m gpu`. Everywhere else these are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gan_train import recipes
from gan_train.bench.step import measure
from gan_train.config import Config
from gan_train.nn.fingerprint import fingerprint
from gan_train.runs.runtime import PlainRuntime
from tests.training import assert_same_bits, run, stylegan, tiny_config, weights

pytestmark = pytest.mark.gpu
FAMILIES: dict[str, dict[str, Any]] = {
    "progan": {},
    "stylegan": {"family": stylegan(1), "data__resolution": 8},
    "stylegan2": {"family": stylegan(2), "data__resolution": 8},
    "dcgan": {
        "family": {"name": "dcgan", "conditional": True, "channels": 4},
        "data__resolution": 16,
        "train__ema_kimg": 0,
    },
}


def trained(config: Config, run_dir: Path, gpu: str = "yes") -> dict[str, torch.Tensor]:
    return weights(run(config, run_dir, PlainRuntime(run_dir, gpu)))


def test_a_gpu_has_the_fingerprints_of_a_cpu() -> None:
    drawn = torch.randn(200_003, generator=torch.Generator().manual_seed(0))
    kinds = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    tensors = {str(kind): (100 * drawn).abs().to(kind) for kind in kinds}
    on_gpu = {name: tensor.cuda() for name, tensor in tensors.items()}
    assert fingerprint(on_gpu) == fingerprint(tensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_computes_what_a_cpu_does(family: str, tiny_source: Path, tmp_path: Path) -> None:
    """Four steps in float64, from the same weights, latents and pictures."""
    changes = FAMILIES[family] | {"train__total_kimg": 0.064, "train__precision": "float64"}
    config = tiny_config(tiny_source, tmp_path, **changes)
    on_cpu, on_gpu = (trained(config, tmp_path / gpu, gpu) for gpu in ("no", "yes"))
    for name, tensor in on_cpu.items():
        torch.testing.assert_close(on_gpu[name], tensor, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_run_has_the_same_bits(
    family: str, precision: str, tiny_source: Path, tmp_path: Path
) -> None:
    """But for augmentation, whose gradients are summed in no fixed order."""
    changes = {"train__precision": precision, "train__checkpoint_kimg": 0.032} | FAMILIES[family]
    if "augment" in changes.get("family", {}):
        kept = {k: v for k, v in changes["family"].items() if not k.startswith("augment")}
        changes["family"] = kept
    ends = {
        kimg: tiny_config(tiny_source, tmp_path, train__total_kimg=kimg, **changes)
        for kimg in (0.032, 0.064)
    }
    whole = trained(ends[0.064], tmp_path / "whole")
    trained(ends[0.032], tmp_path / "parts")
    assert_same_bits(trained(ends[0.064], tmp_path / "parts"), whole)


def test_the_benchmark_tells_memory_and_every_technique(tmp_path: Path) -> None:
    every_step = {"r1_every": 1, "path_length_every": 1}  # else a cycle has many steps
    family = stylegan(2) | {"conditional": False, "mbstd_group": 4} | every_step
    family.pop("class_mapping_layers")
    config = tiny_config(tmp_path, tmp_path, family=family, data__classes="none")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipes.dump(config))
    ways = ("scaled", "demodulation", "sums", "resampling", "derivatives", "optimizer")
    lines = list(
        measure(
            str(recipe),
            [],
            resolutions=(16,),
            batch=8,
            precisions=("float32", "bf16"),
            layouts=("channels_last", "contiguous"),
            instead=ways,
            rounds=1,
        )
    )
    assert torch.cuda.get_device_name() in lines[0]
    rows = [
        line
        for line in lines
        if line.startswith(("float32 ", "bf16 ")) and "%" in line and ":" not in line
    ]
    memory = [float(row.split()[-1]) for row in rows]  # GiB
    assert len(memory) == 2 * (2 + len(ways)) and min(memory) > 0
