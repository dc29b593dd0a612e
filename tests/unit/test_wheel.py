"""The wheel works by itself: installed without the sources, in a folder where nothing is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import gan_train

ROOT = Path(gan_train.__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "configs", "gan_train", "pipelines")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*SOURCES, "sample_data"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    command = [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", "dist", "."]
    subprocess.run(command, cwd=folder, check=True)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def program(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a program of a fresh environment in an empty folder. The environment holds the wheel;
    what the wheel requires is borrowed from the environment of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    install = ["install", "--no-deps", "--no-index", "--quiet", wheel]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    # a plain line adds a folder, but not the links to the sources that lie in that folder
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    empty = folder / "empty"
    empty.mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(name: str, *arguments: str) -> str:
        command = [str(python.with_name(name)), *arguments]
        done = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_it_holds_the_code_the_recipes_and_the_sample_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    shared = "gan_train-0.1.0.data/data/share/gan-train/"
    kept = {name.removeprefix(shared) for name in names if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for room in ("gan_train", "pipelines", "configs", "sample_data/statistics")
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {f"sample_data/{name}" for name in ("glyphs.zip", "licences.tsv", "FONTS.tsv")}
    assert kept == expected | {"sample_data/README.md"}


def test_the_demo_is_planned_in_an_empty_folder(program: Callable[..., str]) -> None:
    where = program("python", "-c", "import gan_train; print(gan_train.__file__)")
    assert str(ROOT) not in where and "site-packages" in where
    assert "source: sample_data/glyphs.zip" in program("gan-train", "config", "demo")
    plan = program("gan-train", "run", "demo", "--dry-run")
    assert "8897 of 32 px" in plan and "share/gan-train/sample_data/glyphs.zip" in plan


def test_a_few_images_are_trained_on_there(program: Callable[..., str]) -> None:
    """By the trainer alone, without Ray, Prefect and MLflow."""
    settings = ["train.total_kimg=0.064", "evaluate.metrics=[diversity]", "evaluate.images=16"]
    program("python", "-m", "gan_train", "demo", *(f"--set={setting}" for setting in settings))
    look = "from pathlib import Path; print(*Path('runs/train').glob('demo-*/samples/*.png'))"
    assert program("python", "-c", look).strip()
