"""The order in which training sees the images: a pure function of seed, data and position.

Positions p = 0, 1, 2, ... count the images since the start of training. With N images, epoch e has
the positions from e*N to (e+1)*N - 1. Positions are dealt to `lanes` in groups of `grain`:

    lane of p = (p // grain) % lanes        rank of p = (p // grain) % world_size

The world size must divide the lanes. So rank r owns the lanes l = r (mod world_size), and
neighbours that belong together (a group of `grain`) stay on one rank.

In every epoch the shards are permuted, and read one after another: this is the epoch's stream. It
is cut into one contiguous span for each lane, as long as the number of this epoch's positions in
that lane. Within a lane, consecutive blocks of `block` samples are shuffled. So a lane reads a
shard forwards, a block at a time, and every image comes exactly once in an epoch. No reader has a
state: to resume, p is enough.

No array here is as long as an epoch. The place of an image, its block and the block's bounds are
closed forms, and Philox gives the random numbers of a block without those before it. So the memory
for an order grows with the shards, the lanes and `block`, and not with the images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gan_train.errors import UserError
from gan_train.rng import derive

Ints = NDArray[np.int64]


def random_keys(count: int, *path: int | str, begin: int = 0) -> NDArray[np.uint64]:
    """The numbers from `begin` on, uint64 [count], of an endless random sequence that depends on
    the keys in `path` alone.

    NumPy promises to keep Philox's raw stream; `Generator.permutation` may change between releases.
    """
    # Philox makes four numbers of each value of its counter
    numbers = np.random.Philox(derive(*path)).advance(begin // 4)
    return numbers.random_raw(begin % 4 + count)[begin % 4 :]


def permutation(count: int, *path: int | str) -> Ints:
    """A random permutation of 0..count-1, which depends on the keys in `path` alone."""
    turns: Ints = np.argsort(random_keys(count, *path), kind="stable")
    return turns


def check_split(*, lanes: int, grain: int, world_size: int, batch: int | None = None) -> None:
    """Raise UserError unless the ranks can share the lanes, and `batch` if given, evenly; the error
    names the allowed values."""
    if lanes % world_size:
        allowed = ", ".join(str(n) for n in range(1, lanes + 1) if lanes % n == 0)
        raise UserError(
            f"cluster.workers={world_size}: {world_size} workers cannot share "
            f"data.lanes={lanes}; the number of workers must divide the lanes: {allowed}"
        )
    unit = grain * world_size
    if batch is not None and batch % unit:
        lower = batch // unit * unit
        nearest = f"{lower} or {lower + unit}" if lower else f"{unit}"
        raise UserError(
            f"train.batch={batch}: a global batch of {batch} cannot be split over {world_size} "
            f"workers in groups of {grain}; it must be a multiple of {unit}, such as {nearest}"
        )


def positions_below(position: Ints | int, lane: Ints, lanes: int, grain: int) -> Ints:
    """How many of the positions 0..position-1 are in the lane. Arrays are broadcast."""
    turn = grain * lanes
    begun: Ints = np.clip(position % turn - lane * grain, 0, grain)
    return begun + position // turn * grain


class Block(NamedTuple):
    """A block of a lane: `reading` int64 [n] has the stored sample numbers in reading order, and
    `turns` int64 [n] the places in it, in the order of training."""

    reading: Ints
    turns: Ints


class Epoch:
    """The order within one epoch. It is computed a block at a time, and keeps one block a lane.

    `starts` int64 [lanes + 1] tells where each lane's span begins in the stream.
    """

    def __init__(self, order: Order, number: int) -> None:
        self._order, self._number = order, number
        sizes = np.array(order.shards)
        turns = permutation(len(sizes), order.seed, "shards", number)
        self._shard_places = np.append(0, np.cumsum(sizes[turns]))  # where shards begin [S + 1]
        self._shard_stored = (np.cumsum(sizes) - sizes)[turns]  # their first stored numbers [S]

        lanes = np.arange(order.lanes)
        begin = number * order.samples
        self._before = positions_below(begin, lanes, order.lanes, order.grain)  # [lanes]
        end = positions_below(begin + order.samples, lanes, order.lanes, order.grain)
        self.starts: Ints = np.append(0, np.cumsum(end - self._before))
        # The lanes' first blocks differ in length, so that the lanes do not all load at once.
        self._first = 1 + (order.block - 1) * lanes // order.lanes  # [lanes]
        # the last block of each lane in the order of training, and that block's number
        longest = min(order.block, int(np.diff(self.starts).max()))
        self._shuffled = np.empty((order.lanes, longest), np.int64)
        self._held = np.full(order.lanes, -1)
        self._lock = Lock()  # loaders of two domains, each with a thread, may have one order

    def stream(self, begin: int, end: int) -> Ints:
        """The stored sample numbers at the places from `begin` to `end - 1` of the stream, in
        reading order."""
        places = np.arange(begin, end)
        shard = np.searchsorted(self._shard_places, places, side="right") - 1
        return self._shard_stored[shard] + places - self._shard_places[shard]

    def locate(self, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """For each of these positions of the epoch its lane, the number of its block in the lane,
        and its turn in the block; all int64 [n]."""
        order, lane = self._order, self._order.lane(positions)
        within = positions_below(positions, lane, order.lanes, order.grain) - self._before[lane]
        later = within - self._first[lane]  # negative in a lane's first block
        turn = np.where(later < 0, within, later % order.block)
        return lane, np.maximum(later // order.block, -1) + 1, turn

    def later(self, lane: int, number: int, samples: int) -> int | None:
        """The stored number of the sample that lies so many samples behind a block in its lane;
        None where the lane ends before."""
        place = self._end(lane, number) - 1 + samples
        return int(self.stream(place, place + 1)[0]) if place < self.starts[lane + 1] else None

    def _end(self, lane: int, number: int) -> int:
        """The place in the stream behind a block, if the lane is long enough."""
        return int(self.starts[lane] + self._first[lane]) + number * self._order.block

    def block(self, lane: int, number: int) -> Block:
        """The block with that number of a lane."""
        start, after = int(self.starts[lane]), int(self.starts[lane + 1])
        end = self._end(lane, number)
        begin = start if number == 0 else end - self._order.block
        end = min(end, after)
        path = (self._order.seed, "blocks", self._number)
        keys = random_keys(end - begin, *path, begin=begin)
        return Block(self.stream(begin, end), np.argsort(keys, kind="stable"))

    def stored(self, positions: Ints) -> Ints:
        """Stored sample numbers of the images at these positions of the epoch, which ascend."""
        lane, block, turn = self.locate(positions)
        result = np.empty_like(positions)
        left = np.arange(len(positions))
        with self._lock:
            while len(left):
                held = self._held[lane[left]] == block[left]
                now, left = left[held], left[~held]
                result[now] = self._shuffled[lane[now], turn[now]]
                for one, first in zip(*np.unique(lane[left], return_index=True), strict=True):
                    number = block[left[first]]
                    reading, turns = self.block(int(one), int(number))
                    self._shuffled[one, : len(turns)] = reading[turns]
                    self._held[one] = number
        return result


@dataclass(frozen=True)
class Order:
    """The order in which training sees a data set, as the head of this file describes it.

    `shards` has the number of samples in each shard. A stored sample number counts the samples of
    all shards, in the order of the index.
    """

    shards: tuple[int, ...]
    seed: int
    lanes: int
    block: int
    grain: int

    def __hash__(self) -> int:
        # the sum stands for the shards, of which there may be thousands
        return hash((self.samples, self.seed, self.lanes, self.block, self.grain))

    @cached_property
    def samples(self) -> int:
        """N, the images of an epoch."""
        return sum(self.shards)

    def epoch(self, number: int) -> Epoch:
        """The order within the epoch with that number. The last few are kept in memory."""
        return _epoch(self, number)

    def lane(self, positions: Ints) -> Ints:
        """The lane of every position."""
        return positions // self.grain % self.lanes

    def share(self, start: int, count: int, rank: int, world_size: int) -> Ints:
        """The rank's positions among the `count` from `start` on, ascending. `start` and `count`
        must be multiples of grain * world_size."""
        groups = np.arange(start, start + count).reshape(-1, world_size, self.grain)
        return groups[:, rank].reshape(-1)

    def worker(self, positions: Ints, world_size: int, workers: int) -> Ints:
        """The number of the loader process that serves each of a rank's positions: the rank's lanes
        are dealt to its `workers` loader processes in turn."""
        return self.lane(positions) // world_size % workers

    def stored(self, positions: Ints) -> Ints:
        """Stored sample numbers of the images at these ascending positions."""
        epochs, result = positions // self.samples, np.empty_like(positions)
        for number in np.unique(epochs).tolist():
            mine = epochs == number
            result[mine] = self.epoch(number).stored(positions[mine])
        return result


@lru_cache(maxsize=4)  # one loader for each of two domains, each with this epoch and the next
def _epoch(order: Order, number: int) -> Epoch:
    return Epoch(order, number)
