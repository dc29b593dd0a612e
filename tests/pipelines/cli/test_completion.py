"""What the Tab key offers, asked as a shell asks it, and without torch, which takes seconds."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gan_train import recipes
from pipelines.cli import completion
from pipelines.cli.completion import SHELLS
from pipelines.cli.main import main

PROGRAM = "import sys; sys.modules['torch'] = None; from pipelines.cli.main import main; main()"


def offered(line: str, folder: Path) -> list[str]:
    """The completions of the last word of a command line."""
    out = folder / "offered.txt"
    subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": str(Path(__file__).parents[3]),
            "_ARGCOMPLETE": "1",
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(out),
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
        },
        check=True,
    )
    return [word.strip() for word in out.read_text().splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a run, a recipe of one's own, and a file that is neither."""
    run = tmp_path / "runs" / "train" / "demo-20260131-120000"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "mine.txt").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("gan-train sta", ["status"]),
        ("gan-train run demo --res", ["--resume"]),
        ("gan-train run demo --resume ", ["demo-20260131-120000"]),
        ("gan-train promote demo --run d", ["demo-20260131-120000"]),
        ("gan-train run de", ["demo"]),
        ("gan-train compare demo lsg", ["lsgan-glyphs"]),
        ("gan-train run mi", ["mine.yaml"]),
        ("gan-train evaluate ", ["demo-20260131-120000", "runs/"]),
        ("gan-train generate de", ["demo"]),
        ("gan-train generate ru", ["runs/"]),
        ("gan-train completion ", list(SHELLS)),
    ],
)
def test_the_tab_key_offers(line: str, wanted: list[str], folder: Path) -> None:
    assert offered(line, folder) == wanted


def test_all_recipes_are_offered(tmp_path: Path) -> None:
    known = [path.stem for path in recipes.SHIPPED.glob("*.yaml")]
    assert offered("gan-train run ", tmp_path) == sorted(known)


@pytest.mark.parametrize("shell", SHELLS)
def test_shells_get_their_code(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    code = capsys.readouterr().out
    assert "_ARGCOMPLETE" in code and "gan-train" in code


def test_what_the_functions_offer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: the shell's own calls are in the tests above."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/train/demo-20260101-000000").mkdir(parents=True)
    (tmp_path / "runs/train/demo-20260101-000000/config.yaml").touch()
    (tmp_path / "mine.yaml").touch()
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers()
    completion.add(commands)
    one = commands.add_parser("one")
    of = {name: one.add_argument(f"--{name}") for name in ("recipe", "run", "target", "model")}
    completion._add_names(parser)
    offered = {name: action.completer(prefix="") for name, action in of.items()}  # type: ignore[attr-defined]
    assert {"demo", "mine.yaml"} <= set(offered["recipe"])
    assert offered["run"] == ["demo-20260101-000000"]
    assert {"demo-20260101-000000", "runs/"} <= set(offered["target"])
    assert {"demo", "runs/"} <= set(offered["model"])
    given = parser.parse_args(["completion", "bash"])
    assert given.command(given) == 0
    assert "gan-train" in capsys.readouterr().out
