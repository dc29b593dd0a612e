"""Where the files lie that come with the project: recipes and sample data.

This file imports only the standard library, because the completion of command lines asks it.
"""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path


def _shared() -> Path:
    """The folder that holds `configs` and `sample_data`: the one of the sources, or the one where
    the installation of a wheel put them."""
    sources, name = Path(__file__).resolve().parents[2], "configs/demo.yaml"
    if not (sources / name).is_file():
        with contextlib.suppress(PackageNotFoundError):
            for file in files("gan-train") or ():
                if file.match(f"share/gan-train/{name}"):
                    return Path(str(file.locate())).resolve().parents[1]
    return sources


SHIPPED = _shared() / "configs"
"""The recipes that come with the project."""


def known() -> list[Path]:
    """The files of all recipes that have a bare name, sorted by it: those in `./configs` come
    before those of the project of the same name."""
    found = {
        path.stem: path for place in (SHIPPED, Path("configs")) for path in place.glob("*.yaml")
    }
    return [found[name] for name in sorted(found)]
