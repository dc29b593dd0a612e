"""`gan-train bench-data`: measures reading and sharding at the size of a large data set.

What is compared takes turns, and only ratios within one call say much. Times are CPU seconds of one
process on one thread: what another process does beside it counts little.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from gan_train.bench import data_forms, data_set
from gan_train.bench.progress import Progress
from gan_train.config import DataConfig
from gan_train.data.index import Index
from gan_train.data.order import Order
from gan_train.errors import UserError

CONVERTED = 10_000
"""The most pictures that a round of sharding converts: its cost grows with their number alone."""
_OWN, *_OTHERS = data_forms.LOADERS
_CONVERTER = "PIL, TarWriter"


def measure(
    images: int, shards: int, side: int, seconds: float, rounds: int, folder: Path | None
) -> Iterator[str]:
    """Yield the lines of the report, each as soon as it is known; progress goes to stderr.

    `folder` is where a temporary folder for the data set is made; None is the system's place for
    such. Raises UserError when there are fewer images than shards.
    """
    if images < shards:
        raise UserError(f"--images={images}: allowed are at least as many as --shards={shards}")
    torch.set_num_threads(1)
    progress = Progress(1 + rounds * (2 * len(data_forms.LOADERS) + 4))
    with tempfile.TemporaryDirectory(dir=folder, prefix="gan-train-bench-") as place:
        root = Path(place)
        with progress.part(f"make {images:,} pictures"):
            index = _make(root, images, shards, side)
        size = sum(shard.bytes for shard in index.shards)
        yield (
            f"{images:,} pictures of {side} px in {shards:,} shards ({size / 1e9:.1f} GB); one "
            f"thread, CPU seconds; rounds: {rounds}"
        )
        yield _index_line(root)
        yield _order_line(index)
        yield from _opened(root, rounds, progress)
        yield from _rates(root, seconds, rounds, progress)
        yield from _conversions(root, side, rounds, progress)
    progress.close()


def _make(root: Path, images: int, shards: int, side: int) -> Index:
    pictures = data_set.draw(side)
    index = data_set.write_shards(pictures, root / "shards", images, shards)
    data_set.write_folder(pictures, root / "folder", images)
    converted = min(images, CONVERTED)
    data_set.write_folder(pictures, root / "source", converted)
    data_set.write_folder(data_set.draw(2 * side), root / "large source", converted)
    return index


# ---- what one process keeps ---------------------------------------------------------------------


def _traced(work: Callable[[], Any]) -> tuple[Any, int, int]:
    """The result of `work`, the bytes that are still allocated after it, and the most at once."""
    tracemalloc.start()
    try:
        result = work()
        return result, *tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


def _index_line(root: Path) -> str:
    begun = time.process_time()
    Index.load(root / "shards")
    took = time.process_time() - begun
    index, held, peak = _traced(lambda: Index.load(root / "shards"))
    return (
        f"{'index':34}{took:.2f} s to read; {held / index.samples:.1f} bytes an image are held, "
        f"{peak / index.samples:.1f} at most"
    )


def _order_line(index: Index) -> str:
    settings = DataConfig(source=".", resolution=index.resolution)
    sizes = tuple(shard.samples for shard in index.shards)
    order = Order(sizes, 0, settings.lanes, settings.block, 4)
    starts = (0, index.samples // 2, index.samples - data_forms.BATCH)  # the last in two epochs
    begun = time.process_time()
    order.stored(np.arange(data_forms.BATCH))
    took = time.process_time() - begun

    def walk() -> None:
        fresh = Order(sizes, 1, settings.lanes, settings.block, 4)
        for start in starts:
            fresh.stored(np.arange(start, start + 2 * data_forms.BATCH))

    _, _, peak = _traced(walk)
    return (
        f"{'order of an epoch':34}{1e3 * took:.1f} ms to its first batch; "
        f"{peak / index.samples:.3f} bytes an image at most"
    )


def _opened(root: Path, rounds: int, progress: Progress) -> Iterator[str]:
    """Lines on the first batch and on memory, each loader opened in processes of their own."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in data_forms.LOADERS}
    spread: dict[str, dict[str, Any]] = {}
    for number in range(rounds):
        for name in found:
            with progress.part(f"first batch, round {number + 1} of {rounds}: {name}"):
                found[name].append(_probe(root, name, 0))
                if number == 0:
                    spread[name] = _probe(root, name, 2)
    firsts = {name: [told["first_batch_s"] for told in each] for name, each in found.items()}
    yield _row("first batch", {name: f"{median(each):.2f} s" for name, each in firsts.items()})
    grown = {name: median(told["grown"] for told in each) for name, each in found.items()}
    yield _row("memory, decoding itself", {n: f"{b / 2**20:.0f} MiB" for n, b in grown.items()})
    each = {name: max(told["workers"]) for name, told in spread.items()}
    yield _row("memory of a loader process", {n: f"{b / 2**20:.0f} MiB" for n, b in each.items()})


def _probe(root: Path, name: str, workers: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "gan_train.bench.data_probe", str(root), name, str(workers)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    if told.returncode:
        raise UserError(f"a loader ({name}) failed: {told.stderr.strip().splitlines()[-1]}")
    figures: dict[str, Any] = json.loads(told.stdout)
    return figures


# ---- rates --------------------------------------------------------------------------------------


def _rates(root: Path, seconds: float, rounds: int, progress: Progress) -> Iterator[str]:
    streams = {name: load(root, 0) for name, load in data_forms.LOADERS.items()}
    rates: dict[str, list[float]] = {name: [] for name in streams}
    for number in range(rounds):
        for name, stream in streams.items():
            with progress.part(f"loading, round {number + 1} of {rounds}: {name}"):
                next(stream)
                rates[name].append(_rate(stream, seconds))
    yield _row("loading, images/s", {name: f"{median(r):,.0f}" for name, r in rates.items()})
    for name in _OTHERS:
        yield _ratio("loading", name, rates[_OWN], rates[name])


def _rate(stream: data_forms.Batches, seconds: float) -> float:
    """Images per CPU second."""
    images, begun = 0, time.process_time()
    while (took := time.process_time() - begun) < seconds:
        images += len(next(stream)[0])
    return images / took


def _conversions(root: Path, side: int, rounds: int, progress: Progress) -> Iterator[str]:
    sources = {f"{side} px": root / "source", f"{2 * side} to {side} px": root / "large source"}
    later: list[float] = []
    for what, source in sources.items():
        rates: dict[str, list[float]] = {_OWN: [], _CONVERTER: []}
        for number in range(rounds):
            part = f"sharding {what}, round {number + 1} of {rounds}"
            with tempfile.TemporaryDirectory(dir=root) as place:
                target = Path(place)
                with progress.part(f"{part}: {_OWN}"):
                    rates[_OWN].append(_timed(data_forms.shard_folder, source, target, side))
                    later.append(1 / _timed(data_forms.shard_folder, source, target, side))
                with progress.part(f"{part}: {_CONVERTER}"):
                    rates[_CONVERTER].append(_timed(data_forms.convert, source, target, side))
        name = f"sharding {what}, images/s"
        yield _row(name, {name: f"{median(each):,.0f}" for name, each in rates.items()})
        yield _ratio("sharding", _CONVERTER, rates[_OWN], rates[_CONVERTER])
    yield f"{'start on finished shards':34}{1e6 * median(later):.1f} us an image"


def _timed(
    work: Callable[[Path, Path, int, int], int], source: Path, target: Path, side: int
) -> float:
    """Images per CPU second."""
    begun = time.process_time()
    images = work(source, target, side, 1000)
    return images / (time.process_time() - begun)


# ---- the report ---------------------------------------------------------------------------------


def _row(name: str, values: dict[str, str]) -> str:
    return f"{name:34}" + "; ".join(f"{form} {value}" for form, value in values.items())


def _ratio(what: str, other: str, ours: list[float], theirs: list[float]) -> str:
    """A line that tells how many times as fast this project is: the median over the rounds, and
    the least and the most."""
    ratios = [one / two for one, two in zip(ours, theirs, strict=True)]
    name = f"{what}: times {other}"
    return f"{name:34}{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
