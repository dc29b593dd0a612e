"""What `test_full_disk.py` runs where the disk is small: python -m tests.faults.on_a_small_disk"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gan_train import __main__, recipes
from gan_train.data.sharding import shard
from gan_train.errors import DiskFull
from gan_train.files.atomic import write_json
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import SCORES, list_checkpoints, newest_valid
from gan_train.runs.events import LOG_NAME, EventLog
from tests.small_disk import fill
from tests.training import tiny_config


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _refused(disk: Path, act: Callable[[], object]) -> dict[str, Any]:
    """What `act` says when the disk is full, and whether all files stay as they are."""
    before, filler, told = _files(disk), fill(disk), ""
    try:
        act()
    except DiskFull as error:
        told = str(error)
    filler.unlink()
    return {"told": told, "as_before": _files(disk) == before}


def _trained(recipe: Path, run: str) -> tuple[int, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = __main__.main([str(recipe), "--resume", run])
    return status, said.getvalue()


def main(source: Path, disk: Path) -> dict[str, Any]:
    logging.disable()
    settings: dict[str, Any] = {"train__total_kimg": 0.064}
    config = tiny_config(source, disk, **settings)
    recipe = source.parent / "tiny.yaml"
    recipe.write_text(recipes.dump(config))
    run_dir = run_folder.new(config, shard(config.data, config.workspace))
    _trained(recipe, run_dir.name)
    (first,) = list_checkpoints(run_dir)
    size = sum(path.stat().st_size for path in first.iterdir())
    found: dict[str, Any] = {}

    # a training whose next checkpoint finds no room
    recipe.write_text(recipes.dump(tiny_config(source, disk, train__total_kimg=0.128)))
    filler = fill(disk, leave=size // 2)
    status, said = _trained(recipe, run_dir.name)
    found["training"] = {
        "status": status,
        "told": said,
        "whole": newest_valid(run_dir) == first,
        "parts": [str(path) for path in disk.rglob("*.part")],
    }
    begun = time.monotonic()
    filler.unlink()
    found["again"] = _trained(recipe, run_dir.name)[0]
    found["recovered_s"] = time.monotonic() - begun
    newest = newest_valid(run_dir)
    found["reached"] = newest is not None and newest.name

    # what else a run writes
    log = EventLog(run_dir)
    event = {"path": "x" * 9000}  # more than the log's last page has room for
    found["event log"] = _refused(disk, lambda: log.append("image", 1000, **event))
    log.append("image", 1000, **event)
    found["event log"]["written later"] = (run_dir / LOG_NAME).read_text().count(
        '"nimg": 1000'
    ) == 1
    scores = {"scores": {f"x{n}": 0.5 for n in range(2000)}, "protocol": {}}
    found["scores"] = _refused(disk, lambda: write_json(first / SCORES, scores))
    other = tiny_config(source, disk, data__resolution=16).data
    found["sharding"] = _refused(disk, lambda: shard(other, disk))
    shard(other, disk)
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]))))
