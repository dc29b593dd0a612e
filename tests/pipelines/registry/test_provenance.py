"""The commit that MLflow and the model card show is that of the code, wherever a command stands."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

import gan_train
from pipelines.registry.provenance import COMMIT_TAG, VERSION_TAG, source_tags

PACKAGE = Path(gan_train.__file__).parent


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=someone", "-c", "user.email=someone@example.org")
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def repository(folder: Path) -> str:
    """A repository with one commit, which is returned."""
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("something else\n")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Begin")
    return git(folder, "rev-parse", "HEAD")


def test_a_command_in_another_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = repository(tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))  # as in a git hook
    found = source_tags()
    assert found[COMMIT_TAG] != other
    monkeypatch.delenv("GIT_DIR")
    assert found[COMMIT_TAG] == git(PACKAGE, "rev-parse", "HEAD")
    assert found[VERSION_TAG] == version("gan-train")


def test_only_a_repository_that_tracks_the_package_counts(tmp_path: Path) -> None:
    home = tmp_path / "home"
    repository(home)
    package = home / "site-packages" / "gan_train"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""Installed."""\n')
    assert COMMIT_TAG not in source_tags(package)

    git(home, "add", "--all")
    git(home, "commit", "--quiet", "--message", "Keep a copy of the package")
    found = source_tags(package)
    assert found[COMMIT_TAG] == git(home, "rev-parse", "HEAD")
    assert "mlflow.source.git.dirty" not in found
    (package / "__init__.py").write_text('"""Changed."""\n')
    assert source_tags(package)["mlflow.source.git.dirty"] == "true"


def test_outside_of_any_repository(tmp_path: Path) -> None:
    assert COMMIT_TAG not in source_tags(tmp_path)
