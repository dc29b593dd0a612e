"""The trainer runs in one plain process and under torchrun without Ray, Prefect or MLflow."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gan_train import __main__, recipes
from gan_train.config import Config
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import newest_valid
from tests.training import assert_same_bits, run_workers, tiny_config, weights

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


# ---- which run, and whose ------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The run folders that were to be trained; nothing is."""
    found: list[Path] = []

    def train(*arguments: Any) -> bool:
        found.append(arguments[-1].run_dir)
        return True

    monkeypatch.setattr(__main__, "train", train)
    return found


def test_a_restart_goes_on_with_the_newest_run_of_its_own_recipe(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained: list[Path]
) -> None:
    config = tiny_config(tiny_source, tmp_path)
    run_folder.new(recipes.change(config, {"name": "tiny-gpu"}), tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    first = __main__.train_plain(config).run_dir  # the first attempt died before it had a run
    second = __main__.train_plain(config).run_dir
    assert trained == [first, second] and first == second
    assert first in run_folder.runs_of(config)


def _train_in_a_second_with_runs(config: Config, told: Path) -> None:
    run_dir = __main__.train_plain(config).run_dir
    (told / os.environ["RANK"]).write_text(str(run_dir))


def test_two_starts_in_one_second_are_two_runs(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path, train__total_kimg=0.032)
    taken = set()
    for second in range(120):
        stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(time.time() + second))
        taken.add(run_folder.folder(config) / f"tiny-{stamp}")
    for folder in taken:
        folder.mkdir(parents=True)
    run_workers(2, tmp_path, _train_in_a_second_with_runs, config, tmp_path)
    (run_dir,) = run_folder.runs_of(config)
    assert run_dir not in taken and newest_valid(run_dir) is not None
    assert [(tmp_path / rank).read_text() for rank in "01"] == 2 * [str(run_dir)]
    assert not any(list(folder.iterdir()) for folder in taken)


@pytest.mark.fault(
    "two plain trainings on one run",
    "the second is refused with status 2, and told which process holds the run",
)
def test_a_run_that_another_process_trains_is_refused(
    tiny_source: Path,
    tmp_path: Path,
    trained: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tiny_config(tiny_source, tmp_path)
    run_dir = run_folder.new(config, tmp_path)
    recipe = str(run_dir / run_folder.CONFIG)
    with run_folder.exclusive(run_dir):
        assert __main__.main([recipe, "--resume", run_dir.name]) == 2
    assert f"is being trained by process {os.getpid()} on " in capsys.readouterr().err
    assert trained == []
    assert __main__.main([recipe, "--resume", run_dir.name]) == 0
    assert trained == [run_dir]
