"""The trainer runs in one plain process and under torchrun without Ray, Prefect or MLflow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gan_train import recipes
from gan_train.runs.checkpoint import newest_valid
from tests.training import assert_same_bits, tiny_config, weights

BLOCK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("ray", "mlflow", "prefect", "pipelines"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
"""


@pytest.mark.slow
def test_plain_and_torchrun_without_the_other_packages(tiny_source: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    root = Path(recipes.SHIPPED).parent
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{root}"}
    ended = {}
    for name, launcher in {
        "plain": [sys.executable],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"],
    }.items():
        recipe = tmp_path / f"{name}.yaml"
        config = tiny_config(tiny_source, tmp_path / name, train__precision="float64")
        recipe.write_text(recipes.dump(config))
        subprocess.run(
            [*launcher, "-m", "gan_train", str(recipe)], env=env, check=True, timeout=200
        )
        (run_dir,) = (tmp_path / name / "train").iterdir()
        assert newest_valid(run_dir) is not None
        ended[name] = {k: v.float() for k, v in weights(run_dir).items()}
    assert_same_bits(ended["plain"], ended["torchrun"])  # float64 runs, compared as float32
