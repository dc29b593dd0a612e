"""Makes training batches: each rank reads its share of the global order (`order.py`).

A `Loader` decides how images get into memory: a thread or loader processes decode them, or they
come from the cache that an earlier epoch filled. It never decides which image comes when.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from gan_train.data.index import Index, sample_key
from gan_train.data.order import Ints, Order, check_split
from gan_train.data.reader import BlockReader, decode_all, read_range
from gan_train.errors import UserError
from gan_train.rng import BatchRandom

Pixels: TypeAlias = NDArray[np.uint8]

_CHUNK_IMAGES, _CHUNK_BYTES = 256, 16 << 20
"""Loader processes hand over chunks of whole batches, which stay below both limits."""
_PLANNED_IMAGES = 4096
"""The order of so many images is computed at once where they come from memory: for a batch alone it
takes as long as the copy of its pixels."""

_OF_A_GROUP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class LoadedBatch:
    """One rank's share of a global batch, by ascending position.

    `images` uint8 [n, C, R, R]; `labels` int64 [n], or None for unlabelled data; `positions` int64
    [n] count the images since the start of training; `beside` holds, by name, further images uint8
    [n, C, r, r] that the task needs, such as downsampled ones.
    """

    images: Tensor
    labels: Tensor | None
    positions: Tensor
    beside: dict[str, Tensor] = field(default_factory=dict)


class Loader:
    """Endless batches from any position on, the same for every number of ranks and workers.

    `order.py` explains `lanes`, `block` and `grain`. `mirror` flips half of the images left to
    right. `workers` is the number of processes that decode, at most one for each lane of this rank;
    with 0 a thread decodes. Decoded images stay in memory when all of them fit in `cache_mb` MiB.

    Raises UserError when the world size does not divide the lanes.
    """

    def __init__(
        self,
        index: Index,
        directory: Path,
        *,
        seed: int,
        lanes: int,
        block: int,
        grain: int,
        mirror: bool = False,
        workers: int = 0,
        cache_mb: int = 512,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        assert 0 <= rank < world_size and lanes >= 1 and block >= 1 and grain >= 1
        check_split(lanes=lanes, grain=grain, world_size=world_size)
        sizes = tuple(shard.samples for shard in index.shards)
        self._index, self._directory = index, Path(directory)
        self._order = Order(sizes, seed, lanes, block, grain)
        self._seed, self._mirror = seed, mirror
        self._rank, self._world = rank, world_size
        self._workers = min(workers, lanes // world_size)
        shape = (index.samples, index.channels, index.resolution, index.resolution)
        self._cache = _Cache(shape) if np.prod(shape) <= cache_mb << 20 else None

    def batches(self, start: int, batch: int, resolution: int) -> Generator[LoadedBatch]:
        """Endless batches from position `start` on, of `batch` images over all ranks, which
        `downsample` brings to `resolution`.

        To change batch or resolution, call this again: the cache stays. To stop the loader
        processes, close or drop the iterator. Raises UserError when batch, start or resolution do
        not fit; the iterator raises `DamagedShard` for a shard that is not what the index says.
        """
        check_split(
            lanes=self._order.lanes, grain=self._order.grain, world_size=self._world, batch=batch
        )
        unit = self._order.grain * self._world
        if start < 0 or start % unit:
            raise UserError(f"cannot start at image {start}: it must be a multiple of {unit}")
        if resolution < 1 or self._index.resolution % resolution:
            raise UserError(
                f"images of {self._index.resolution} pixels cannot be downsampled to {resolution}: "
                "the resolution must divide the stored one"
            )
        return self._batches(start, batch, resolution)

    def _batches(self, start: int, batch: int, resolution: int) -> Generator[LoadedBatch]:
        if self._cache is None or not self._cache.full:
            produce = self._from_workers if self._workers else self._from_thread
            for loaded in produce(start, batch, resolution):
                start += batch
                yield loaded
        assert self._cache is not None and self._cache.full
        share, ahead = batch // self._world, max(1, _PLANNED_IMAGES // batch)
        while True:
            positions = self._share(start, batch * ahead)
            stored = self._order.stored(positions)
            for cut in range(0, len(positions), share):
                these = slice(cut, cut + share)
                pixels, labels = self._cache.gather(stored[these])
                yield self._finish(pixels, labels, positions[these], resolution)
            start += batch * ahead

    def keys(self, start: int, count: int) -> list[str]:
        """The keys of the samples in the shards at positions `start` to `start + count - 1`, over
        all ranks."""
        ends = np.cumsum([shard.samples for shard in self._index.shards])
        stored = self._order.stored(np.arange(start, start + count))
        shards = np.searchsorted(ends, stored, side="right")
        return [
            sample_key(shard.number, int(place - end + shard.samples))
            for place, shard, end in zip(
                stored, (self._index.shards[i] for i in shards), ends[shards], strict=True
            )
        ]

    def _share(self, start: int, count: int) -> Ints:
        return self._order.share(start, count, self._rank, self._world)

    def _from_thread(self, start: int, batch: int, resolution: int) -> Iterator[LoadedBatch]:
        """Batches until the cache is full; a thread decodes the next one while one is in use."""
        reader = BlockReader(self._index, self._directory, self._order)

        def load(begin: int) -> LoadedBatch:
            positions = self._share(begin, batch)
            if self._cache is None:
                return self._finish(*reader.read(positions), positions, resolution)
            stored = self._order.stored(positions)
            if (missing := ~self._cache.has[stored]).any():
                self._cache.put(stored[missing], *reader.read(positions[missing]))
            return self._finish(*self._cache.gather(stored), positions, resolution)

        with ThreadPoolExecutor(1, "loader") as thread:
            ahead = thread.submit(load, start)
            while self._cache is None or not self._cache.full:
                loaded, start = ahead.result(), start + batch
                ahead = thread.submit(load, start)
                yield loaded

    def _from_workers(self, start: int, batch: int, resolution: int) -> Iterator[LoadedBatch]:
        """Batches until the cache is full; each loader process serves some of this rank's lanes."""
        # the cache keeps images at full size; without it they are downsampled before they are sent
        side = resolution if self._cache is None else self._index.resolution
        share = batch // self._world
        image_bytes = self._index.channels * side * side
        per_chunk = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // image_bytes) // share)

        parts = _WorkerParts(
            self._index,
            self._directory,
            self._order,
            rank=self._rank,
            world_size=self._world,
            workers=self._workers,
            start=start,
            chunk=batch * per_chunk,
            side=side,
        )
        # A process with threads can hang when it forks. So a server forks, which has no threads and
        # has imported this module.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        loader = DataLoader(
            parts,
            batch_size=None,
            num_workers=self._workers,
            multiprocessing_context=context,
            collate_fn=_untouched,
            worker_init_fn=_deaf,
            generator=torch.Generator(),  # else the DataLoader draws from the global generator
        )
        # Ctrl-C, a closed terminal and some supervisors signal all processes of a group. The server
        # inherits that such signals are blocked, and the loader processes block them, so that this
        # process can end training in good order.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_A_GROUP)
        try:
            received = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        try:
            while self._cache is None or not self._cache.full:
                positions = self._share(start, batch * per_chunk)
                worker = parts.worker_of(positions)
                pixels = np.empty((len(positions), self._index.channels, side, side), np.uint8)
                labels = np.empty(len(positions), np.int64)
                for number in range(self._workers):  # the DataLoader returns parts in this order
                    mine = worker == number
                    part = next(received)
                    if isinstance(part, UserError):
                        raise part  # without the traceback of another process
                    pixels[mine], labels[mine] = part
                if self._cache is not None:
                    self._cache.put(self._order.stored(positions), pixels, labels)
                for cut in range(0, len(positions), share):
                    these = slice(cut, cut + share)
                    yield self._finish(pixels[these], labels[these], positions[these], resolution)
                start += batch * per_chunk
        finally:
            del received  # stops the loader processes now, not at some garbage collection

    def _finish(
        self, pixels: Pixels, labels: Ints, positions: Ints, resolution: int
    ) -> LoadedBatch:
        images = downsample(torch.from_numpy(pixels), resolution)
        places = torch.from_numpy(positions)
        if self._mirror:
            flip = BatchRandom(self._seed, "mirror", places).uniform() < 0.5  # [n]
            images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        known = torch.from_numpy(labels) if self._index.classes else None
        return LoadedBatch(images, known, places)


def downsample(images: Tensor, resolution: int) -> Tensor:
    """Downsample uint8 [n, C, R, R] to uint8 [n, C, resolution, resolution]: a pixel is the mean of
    a box of pixels, with halves rounded up.

    The result is exact, and so the same on every machine: sums of at most 256x256 bytes are whole
    numbers that float32 can hold.
    """
    factor = images.shape[-1] // resolution
    assert factor * resolution == images.shape[-1] and factor <= 256
    if factor == 1:
        return images
    return (avg_pool2d(images.float(), factor) + 0.5).floor().to(torch.uint8)


def read_images(
    index: Index, directory: Path, start: int, count: int
) -> tuple[Tensor, Tensor | None]:
    """Images uint8 [n, C, R, R] and labels int64 [n] (None for unlabelled data) of the samples from
    `start` to `start + count - 1` in stored order, which is a random permutation of the source, or
    of each of its additions (`data.grow`).

    Raises UserError when the data set ends before, `DamagedShard` when a shard is damaged.
    """
    if not 0 <= start <= start + count <= index.samples:
        raise UserError(
            f"images {start} to {start + count} were asked for; the data set has {index.samples}"
        )
    samples, begin = [], 0
    for number, shard in enumerate(index.shards):
        first, last = max(start - begin, 0), min(start + count - begin, shard.samples)
        if first < last:
            samples += read_range(index, directory, number, first, last - first)
        begin += shard.samples
    pixels, labels = decode_all(index, samples)
    return torch.from_numpy(pixels), torch.from_numpy(labels) if index.classes else None


class _Cache:
    """Keeps decoded images and their labels by stored number, as they arrive in any order."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._pixels: Pixels = np.empty(shape, np.uint8)  # [N, C, R, R]
        self._labels: Ints = np.empty(shape[0], np.int64)
        self.has = np.zeros(shape[0], bool)
        self.full = False

    def put(self, stored: Ints, pixels: Pixels, labels: Ints) -> None:
        self._pixels[stored], self._labels[stored] = pixels, labels
        self.has[stored] = True
        self.full = bool(self.has.all())

    def gather(self, stored: Ints) -> tuple[Pixels, Ints]:
        return self._pixels[stored], self._labels[stored]


@dataclass(frozen=True)
class _WorkerParts(IterableDataset[tuple[Pixels, Ints] | UserError]):
    """What one loader process sends of every chunk: the images of its lanes, if there are any."""

    index: Index
    directory: Path
    order: Order
    _: KW_ONLY
    rank: int
    world_size: int
    workers: int
    start: int
    chunk: int
    side: int

    def worker_of(self, positions: Ints) -> Ints:
        """The number of the loader process that serves each of this rank's positions."""
        return self.order.worker(positions, self.world_size, self.workers)

    def __iter__(self) -> Iterator[tuple[Pixels, Ints] | UserError]:
        info = get_worker_info()
        assert info is not None
        reader = BlockReader(self.index, self.directory, self.order)
        for start in count(self.start, self.chunk):
            positions = self.order.share(start, self.chunk, self.rank, self.world_size)
            try:
                pixels, labels = reader.read(positions[self.worker_of(positions) == info.id])
            except UserError as error:
                yield error
                return
            yield downsample(torch.from_numpy(pixels), self.side).numpy(), labels


def _deaf(_: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _OF_A_GROUP)


def _untouched(part: Any) -> Any:
    """Leave arrays as they are, so that they are sent through a pipe. Tensors would take shared
    memory, and containers often have little of it."""
    return part
