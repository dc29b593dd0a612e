"""The picture of a model card, at a size that the page of a version shows whole."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from gan_train.images.origin import kept
from gan_train.runs.events import read_events

WIDTH = 480
"""The most pixels across. MLflow does not shrink pictures; in a window of 1,000 pixels this much is
left between its menu and its assistant."""


@contextmanager
def card_picture(run_dir: Path, nimg: int) -> Iterator[Path | None]:
    """Yield a file with the newest sample grid up to this many images, at most `WIDTH` pixels wide;
    None if there is no grid. (The whole grid is in MLflow, too, among the run's images.)"""
    events = (e for e in read_events(run_dir) if e["kind"] == "image" and e["nimg"] <= nimg)
    there = [path for event in events if (path := run_dir / event["path"]).is_file()]
    if not there:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder, Image.open(there[-1]) as grid:
        narrow = Path(folder, there[-1].name)
        if grid.width > WIDTH:
            height = max(1, round(grid.height * WIDTH / grid.width))
            small = grid.resize((WIDTH, height), Image.Resampling.LANCZOS)
            small.save(narrow, pnginfo=kept(grid))
        else:
            grid.save(narrow, pnginfo=kept(grid))
        yield narrow
