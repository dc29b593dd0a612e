"""The order of images: closed form, permutation, and independence of the split."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gan_train.data.order import Order, check_split, permutation, positions_below
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


@untimed
@given(orders, st.integers(0, 2))
def test_a_lane_reads_forwards_and_shuffles_within_blocks_alone(order: Order, epoch: int) -> None:
    built = order.epoch(epoch)
    shard = np.repeat(np.arange(len(order.shards)), order.shards)
    turns = np.flatnonzero(np.diff(shard[built.stream])) + 1
    for run in np.split(built.stream, turns):  # shards one after another, each from its start
        assert run.tolist() == np.flatnonzero(shard == shard[run[0]]).tolist()
    for lane in range(order.lanes):
        span = slice(built.starts[lane], built.starts[lane + 1])
        sizes = np.unique(built.block[span], return_counts=True)[1]
        first = 1 + (order.block - 1) * lane // order.lanes
        assert (sizes <= order.block).all()
        assert len(sizes) < 2 or (sizes[0] == first and (sizes[1:-1] == order.block).all())
    for number in np.unique(built.block):
        places = built.block == number
        assert sorted(built.shuffled[places].tolist()) == sorted(built.stream[places].tolist())
        assert built.unshuffled(int(number)).tolist() == built.stream[places].tolist()


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
    assert (order.epoch(0).stream != order.epoch(0).shuffled).mean() > 0.8


def test_order_is_pinned() -> None:
    """A changed order would break every resume: raise the checkpoint's format if you mean it."""
    order = Order((7, 11, 5), 3, lanes=4, block=4, grain=2)
    digest = hashlib.sha256(order.stored(np.arange(100)).astype("<i8").tobytes()).hexdigest()
    assert permutation(8, "pinned", 1).tolist() == [4, 1, 2, 6, 5, 7, 3, 0]
    assert digest[:16] == "2574b86dea024299"


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
