"""The order of images: closed form, permutation, and independence of the split."""

from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_train.data.order import (
    Ints,
    Order,
    check_split,
    permutation,
    positions_below,
    random_keys,
)
from gan_train.errors import UserError

untimed = settings(deadline=None)  # shared machines pause
orders = st.builds(
    Order,
    shards=st.lists(st.integers(1, 9), min_size=1, max_size=6).map(tuple),
    seed=st.integers(0, 5),
    lanes=st.integers(1, 12),
    block=st.integers(1, 7),
    grain=st.integers(1, 4),
)


@untimed
@given(st.integers(0, 500), st.integers(1, 12), st.integers(1, 5))
def test_closed_form_counts_the_positions_of_a_lane(position: int, lanes: int, grain: int) -> None:
    dealt = np.arange(position) // grain % lanes
    counted = [int((dealt == lane).sum()) for lane in range(lanes)]
    assert positions_below(position, np.arange(lanes), lanes, grain).tolist() == counted


@untimed
@given(orders, st.integers(0, 3))
def test_every_epoch_shows_every_image_once(order: Order, epoch: int) -> None:
    positions = np.arange(epoch * order.samples, (epoch + 1) * order.samples)
    assert sorted(order.stored(positions).tolist()) == list(range(order.samples))


@untimed
@given(orders, st.integers(0, 60), st.integers(1, 60))
def test_an_image_depends_on_its_position_alone(order: Order, start: int, count: int) -> None:
    whole = order.stored(np.arange(start + count))
    assert order.stored(np.arange(start, start + count)).tolist() == whole[start:].tolist()
    assert order.stored(np.arange(start, start + 1)).tolist() == whole[start : start + 1].tolist()


def whole_epoch(order: Order, number: int) -> tuple[Ints, Ints, Ints]:
    """The stream, the stored numbers in the order of training and the blocks of an epoch, lane
    after lane, made of arrays as long as the epoch: the order as it was first written down."""
    samples = order.samples
    begins = np.cumsum((0, *order.shards))
    turns = permutation(len(order.shards), order.seed, "shards", number)
    stream = np.concatenate([np.arange(begins[shard], begins[shard + 1]) for shard in turns])
    positions = np.arange(number * samples, (number + 1) * samples)
    lengths = np.bincount(positions // order.grain % order.lanes, minlength=order.lanes)
    lane = np.repeat(np.arange(order.lanes), lengths)
    within = np.arange(samples) - (np.cumsum(lengths) - lengths)[lane]
    first = 1 + (order.block - 1) * lane // order.lanes
    block = np.where(within < first, 0, 1 + (within - first) // order.block)
    keys = random_keys(samples, order.seed, "blocks", number)
    return stream, stream[np.lexsort((keys, block, lane))], block


@untimed
@given(orders, st.integers(0, 3))
def test_blocks_computed_alone_are_those_of_the_whole_epoch(order: Order, epoch: int) -> None:
    stream, shuffled, _ = whole_epoch(order, epoch)
    positions = np.arange(epoch * order.samples, (epoch + 1) * order.samples)
    lanes = positions // order.grain % order.lanes
    by_lane = np.argsort(lanes, kind="stable")  # the positions of a lane one after another
    assert order.stored(positions)[by_lane].tolist() == shuffled.tolist()
    assert order.epoch(epoch).stream(0, order.samples).tolist() == stream.tolist()


@untimed
@given(st.integers(0, 40), st.integers(0, 40))
def test_keys_from_a_place_on_are_those_of_the_whole_sequence(begin: int, count: int) -> None:
    whole = random_keys(begin + count, "keys", 1)
    assert random_keys(count, "keys", 1, begin=begin).tolist() == whole[begin:].tolist()


@untimed
@given(orders, st.integers(0, 2))
def test_a_lane_reads_forwards_and_shuffles_within_blocks_alone(order: Order, epoch: int) -> None:
    built = order.epoch(epoch)
    stream, shuffled, block = whole_epoch(order, epoch)
    shard = np.repeat(np.arange(len(order.shards)), order.shards)
    turns = np.flatnonzero(np.diff(shard[stream])) + 1
    for run in np.split(stream, turns):  # shards one after another, each from its start
        assert run.tolist() == np.flatnonzero(shard == shard[run[0]]).tolist()
    for lane in range(order.lanes):
        span = slice(built.starts[lane], built.starts[lane + 1])
        numbers, sizes = np.unique(block[span], return_counts=True)
        first = 1 + (order.block - 1) * lane // order.lanes
        assert (sizes <= order.block).all()
        assert len(sizes) < 2 or (sizes[0] == first and (sizes[1:-1] == order.block).all())
        for number in numbers.tolist():
            reading, turns = built.block(lane, number)
            assert reading.tolist() == stream[span][block[span] == number].tolist()
            assert reading[turns].tolist() == shuffled[span][block[span] == number].tolist()


@pytest.mark.parametrize("images", [1_000_000, 30_000_000])
def test_memory_for_an_order_does_not_grow_with_its_images(images: int) -> None:
    """An array with a number for each image would take 8 bytes an image."""
    shards = 300  # whose numbers are arrays, too
    order = Order((images // shards,) * shards, 0, lanes=48, block=64, grain=4)
    tracemalloc.start()
    try:
        for start in (0, order.samples - 64, 5 * order.samples // 2):  # an epoch's end among them
            order.stored(np.arange(start, start + 128))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < peak < 250_000, (held, peak)


def test_a_batch_may_span_blocks_and_come_again() -> None:
    """The blocks that an epoch holds are what it read last, not a place it stands at."""
    order = Order((97, 3, 60), 1, lanes=4, block=4, grain=2)
    forwards = order.stored(np.arange(480))
    for start in (300, 20, 158, 0, 310):
        assert order.stored(np.arange(start, start + 100)).tolist() == (
            forwards[start : start + 100].tolist()
        )


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_ranks_share_the_positions_and_keep_grains_together(world: int) -> None:
    order = Order((10,), 0, lanes=12, block=4, grain=2)
    shares = [order.share(24, 48, rank, world) for rank in range(world)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(24, 72))
    for rank, share in enumerate(shares):
        assert (np.diff(share) > 0).all()
        assert (share[0::2] + 1 == share[1::2]).all()  # neighbours stay together
        assert set(order.lane(share) % world) == {rank}  # a lane has one owner
        for workers in range(1, 12 // world + 1):
            serving = order.worker(share, world, workers)
            assert set(serving) == set(range(workers))  # all of them have work
            for lane in set(order.lane(share)):  # and a lane has one server
                assert len(set(serving[order.lane(share) == lane])) == 1


def test_shuffling_shuffles_and_differs_by_epoch_and_seed() -> None:
    order = Order((50, 50, 50), 0, lanes=4, block=16, grain=1)
    other_seed = Order((50, 50, 50), 1, lanes=4, block=16, grain=1)
    first, second = order.stored(np.arange(150)), order.stored(np.arange(150, 300))
    assert (first != second).mean() > 0.9
    assert (first != other_seed.stored(np.arange(150))).mean() > 0.9
    stream, shuffled, _ = whole_epoch(order, 0)
    assert (stream != shuffled).mean() > 0.8


def test_order_is_pinned() -> None:
    """A changed order would break every resume: raise the checkpoint's format if you mean it."""
    order = Order((7, 11, 5), 3, lanes=4, block=4, grain=2)
    digest = hashlib.sha256(order.stored(np.arange(100)).astype("<i8").tobytes()).hexdigest()
    assert permutation(8, "pinned", 1).tolist() == [4, 1, 2, 6, 5, 7, 3, 0]
    assert digest[:16] == "2574b86dea024299"
    large = Order((1000,) * 99 + (517,), 11, lanes=48, block=64, grain=4)
    positions = np.arange(150_000, 250_000)  # across the end of the first epoch
    digest = hashlib.sha256(large.stored(positions).astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "943d783929dbba55"


def test_check_split_names_what_is_allowed() -> None:
    check_split(lanes=48, grain=4, world_size=3, batch=24)
    with pytest.raises(UserError, match=r"5 workers .*lanes=12.*: 1, 2, 3, 4, 6, 12"):
        check_split(lanes=12, grain=1, world_size=5)
    with pytest.raises(
        UserError, match=r"batch of 20 .* 2 workers .* of 4; .* of 8, such as 16 or 24"
    ):
        check_split(lanes=12, grain=4, world_size=2, batch=20)
    with pytest.raises(UserError, match="such as 8"):
        check_split(lanes=12, grain=4, world_size=2, batch=4)
