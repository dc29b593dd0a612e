"""The browser in which tests open pages."""

from __future__ import annotations

import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome")


def program() -> str | None:
    """The path of a browser; None where none is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)
