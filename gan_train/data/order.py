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
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gan_train.errors import UserError
from gan_train.rng import derive

Ints = NDArray[np.int64]


def random_keys(count: int, *path: int | str) -> NDArray[np.uint64]:
    """Random numbers uint64 [count], which depend on the keys in `path` alone.

    NumPy promises to keep Philox's raw stream; `Generator.permutation` may change between releases.
    """
    return np.random.Philox(derive(*path)).random_raw(count)


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


@dataclass(frozen=True)
class Epoch:
    """The order within one epoch.

    `stream` int64 [N] has the stored sample numbers in reading order, lane after lane.
    `shuffled` int64 [N] has the same numbers in the order of training: shuffled within blocks.
    `starts` int64 [lanes + 1] tells where each lane's span begins in both of these.
    `block` int64 [N] has, for each place of the stream, the number of its block, ascending.
    """

    stream: Ints
    shuffled: Ints
    starts: Ints
    block: Ints

    def unshuffled(self, block: int) -> Ints:
        """The samples of the block with that number, in reading order."""
        begin, end = np.searchsorted(self.block, [block, block + 1])
        return self.stream[begin:end]


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

    @property
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

    def places(self, number: int, positions: Ints) -> Ints:
        """The places in the stream of epoch `number` at which these positions of it lie."""
        lane = self.lane(positions)
        begin = number * self.samples
        within = positions_below(positions, lane, self.lanes, self.grain) - positions_below(
            begin, lane, self.lanes, self.grain
        )
        return self.epoch(number).starts[lane] + within

    def stored(self, positions: Ints) -> Ints:
        """Stored sample numbers of the images at these ascending positions."""
        epochs, result = positions // self.samples, np.empty_like(positions)
        for number in np.unique(epochs).tolist():
            mine = epochs == number
            result[mine] = self.epoch(number).shuffled[self.places(number, positions[mine])]
        return result


@lru_cache(maxsize=4)  # one loader for each of two domains, each with this epoch and the next
def _epoch(order: Order, number: int) -> Epoch:
    samples, lanes = order.samples, np.arange(order.lanes)
    shard_begins = np.cumsum((0, *order.shards))
    turns = permutation(len(order.shards), order.seed, "shards", number)
    stream = np.concatenate([np.arange(shard_begins[s], shard_begins[s + 1]) for s in turns])

    def below(position: int) -> Ints:
        return positions_below(position, lanes, order.lanes, order.grain)

    lengths = below((number + 1) * samples) - below(number * samples)  # [lanes], sum N
    starts = np.concatenate([[0], np.cumsum(lengths)])

    # The lanes' first blocks differ in length, so that the lanes do not all load at once.
    lane = np.repeat(lanes, lengths)  # [N]
    within = np.arange(samples) - starts[lane]  # [N]
    first = 1 + (order.block - 1) * lane // order.lanes
    block_of_lane = np.where(within < first, 0, 1 + (within - first) // order.block)
    new = np.ones(samples, dtype=bool)
    new[1:] = (lane[1:] != lane[:-1]) | (block_of_lane[1:] != block_of_lane[:-1])
    block = np.cumsum(new)
    keys = random_keys(samples, order.seed, "blocks", number)
    shuffled = stream[np.lexsort((keys, block))]  # sorted by block, shuffled within
    return Epoch(stream, shuffled, starts, block)
