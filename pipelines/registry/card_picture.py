"""The picture of a model card, at a size that the page of a version shows whole."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from gan_train.runs.events import read_events

WIDTH = 480
"""The most pixels across. MLflow does not shrink pictures; in a window of 1,000 pixels this much is
left between its menu and its assistant."""


@contextmanager
def grids(run_dir: Path, nimg: int) -> Iterator[list[Path]]:
    """Yield the newest sample grid up to this many images and, for the card, a copy that is at most
    `WIDTH` pixels wide; an empty list if there is no grid."""
    events = (e for e in read_events(run_dir) if e["kind"] == "image" and e["nimg"] <= nimg)
    there = [path for event in events if (path := run_dir / event["path"]).is_file()]
    if not there:
        yield []
        return
    with tempfile.TemporaryDirectory() as folder, Image.open(there[-1]) as picture:
        narrow = Path(folder, f"card-{there[-1].stem}.png")
        if picture.width > WIDTH:
            height = max(1, round(picture.height * WIDTH / picture.width))
            picture.resize((WIDTH, height), Image.Resampling.LANCZOS).save(narrow)
        else:
            picture.save(narrow)
        yield [there[-1], narrow]
