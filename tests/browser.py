"""The browser in which tests open pages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")


def program() -> str | None:
    """The path of a browser; None where none is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def opened(address: str, profile: Path) -> str:
    """The page in a browser, after its scripts ran."""
    chosen = program()
    assert chosen is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    options += [f"--user-data-dir={profile}", "--virtual-time-budget=5000"]
    done = subprocess.run([chosen, *options, address], capture_output=True, text=True, timeout=120)
    assert "</html>" in done.stdout, done.stderr
    return done.stdout
