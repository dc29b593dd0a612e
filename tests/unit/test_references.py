"""Files and modules that the code and its documents name are there: what is moved leaves no stale
word behind."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ("gan_train", "pipelines", "infra", "configs", "sample_data", "docs", "tests")
FILES = {path.name for place in PLACES for path in (ROOT / place).rglob("*.*")}


def stale(text: str) -> Iterator[str]:
    """What `text` names as a path from the root, a dotted module or a Python file, and is not."""
    for path in re.findall(r"\b(?:gan_train|pipelines|infra|tests|docs)/[\w./-]*\w", text):
        if not (ROOT / path).exists() and not list(ROOT.glob(f"{path}.*")):
            yield path
    for name in re.findall(r"`((?:gan_train|pipelines)\.\w+)(?:\.\w+)*`", text):
        module = ROOT.joinpath(*name.split("."))
        if not (module.is_dir() or module.with_suffix(".py").exists()):
            yield name
    yield from set(re.findall(r"`(\w+\.py)`", text)) - FILES


@pytest.mark.parametrize("place", ["gan_train", "pipelines", "infra", "configs", "."])
def test_what_is_named_is_there(place: str) -> None:
    if place == ".":
        files = [*ROOT.glob("*.md"), ROOT / "docs" / "architecture.md", ROOT / "pyproject.toml"]
        files = [file for file in files if file.name != "CHANGELOG.md"]  # tells of what was
    else:
        ends = {".py", ".md", ".yaml", ""}
        files = [p for p in (ROOT / place).rglob("*") if p.is_file() and p.suffix in ends]
    assert files
    found = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in files
        for name in stale(file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "see pipelines/cli_compare.py",
        "`gan_train.trainer.step` does it",
        "`gan_train/nn/layer.py`",
        "as `cli_compare.py` says",
    ],
)
def test_a_stale_word_is_noticed(text: str) -> None:
    assert list(stale(text))
