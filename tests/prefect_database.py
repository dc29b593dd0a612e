"""An empty database of Prefect that tests share. A server takes five CPU seconds to make the tables
of a new one, in each workspace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

_VARIABLE = "GAN_TRAIN_TEST_DATABASE"
_NAME = "prefect.db"


def make(folder: Path) -> dict[str, str]:
    """Make the database in a folder; returns the environment in which `copy_to` finds it."""
    home = {"PREFECT_HOME": str(folder), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    prefect = Path(sys.executable).with_name("prefect")
    subprocess.run(
        [prefect, "server", "database", "upgrade", "--yes"],
        env=os.environ | home,
        check=True,
        capture_output=True,
    )
    return {_VARIABLE: str(folder / _NAME)}


def copy_to(home: Path) -> None:
    """Give a new home of Prefect a copy, where there is one to copy."""
    made = os.environ.get(_VARIABLE)
    if made is not None and not (home / _NAME).exists():
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copy(made, home / _NAME)
