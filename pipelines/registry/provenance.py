"""Says which code trains, on what, and where that is written down: the tags of MLflow for these.

MLflow would name the repository of the folder where a command was typed. This file names the
repository that tracks the package `gan_train`. A package that no repository tracks has no commit:
an installed wheel, even if its folder lies in somebody's repository. Code that was sent to a
cluster has a file beside it, in which the sender has told what it is.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import gan_train
from gan_train.runs.environment import Environment
from gan_train.runs.ledger import entry_of_checkpoint, read_entries, started
from pipelines.compute.submission import SOURCE

COMMIT_TAG = "mlflow.source.git.commit"
VERSION_TAG = "gan_train.version"
CHAIN_TAG = "ledger"
"""The tag of a version with the chain of its checkpoint's entry in the run's ledger."""
_ENVIRONMENT = "environment."
_DIRTY_TAG = "mlflow.source.git.dirty"
_PACKAGE = Path(gan_train.__file__).parent


def source_tags(package: Path = _PACKAGE) -> dict[str, str]:
    """Tags of an MLflow run that say which code trains; those that are unknown are left out."""
    sent = package.parent / SOURCE
    if sent.is_file():
        told: dict[str, str] = json.loads(sent.read_text(encoding="utf-8"))
        return told
    try:
        found = {VERSION_TAG: version("gan-train")}
    except PackageNotFoundError:  # the package is not installed, but run from its folder
        found = {}

    def git(*arguments: str) -> str:
        # a git hook sets variables that would lead to its own repository
        environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
        done = subprocess.run(
            ["git", "-C", str(package), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return found
    return found | {COMMIT_TAG: commit} | ({_DIRTY_TAG: "true"} if changed else {})


def environment_tags(environment: Mapping[str, str]) -> Environment:
    """The environment of a training as tags, such as `environment.torch`."""
    return {_ENVIRONMENT + key: value for key, value in environment.items()}


def ledger_tags(run_dir: Path, nimg: int) -> dict[str, str]:
    """Tags of a version that was trained on so many images: its chain in the run's ledger, and the
    environment then. Empty where an earlier version of the program has trained it."""
    entries = read_entries(run_dir)
    start, entry = started(entries, nimg), entry_of_checkpoint(entries, nimg)
    if start is None or entry is None:
        return {}
    return {CHAIN_TAG: entry["chain"], **environment_tags(start["environment"])}
