"""Wishes that wait together are drawn together, and everyone gets what was wished."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest
import torch

from gan_train.sampling.wishes import Wish, draw
from pipelines.serving.batcher import Batcher
from tests.unit.sampling.fakes import linear


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    batcher = Batcher(linear())
    yield batcher
    batcher.close()


def busy(batcher: Batcher) -> threading.Event:
    """Keep the thread busy until the event is set."""
    end, begun = threading.Event(), threading.Event()
    batcher.run(lambda: begun.set() or end.wait())
    begun.wait()
    return end


def test_what_waits_is_drawn_in_as_few_passes_as_fit(batcher: Batcher) -> None:
    end = busy(batcher)
    wishes = [Wish(seed, truncation=0.5 + seed % 2) for seed in range(150)]
    # one by one, as requests come
    futures = [future for wish in wishes for future in batcher.draw([wish])]
    assert batcher.waiting == 150
    end.set()
    images = [future.result() for future in futures]
    assert (batcher.passes, batcher.images, batcher.waiting) == (3, 150, 0)  # 64 at once
    for wish, image in zip(wishes, images, strict=True):
        (alone,) = draw(batcher.generator, [wish])
        assert torch.equal(image, alone)


def test_those_who_have_gone_away_are_left_out(batcher: Batcher) -> None:
    end = busy(batcher)
    gone, stays = batcher.draw([Wish(1), Wish(2)])
    assert gone.cancel()
    end.set()
    assert torch.equal(stays.result(), draw(batcher.generator, [Wish(2)])[0])
    assert batcher.images == 1


def test_an_error_reaches_those_who_wait_and_the_next_pass_goes_on(batcher: Batcher) -> None:
    end = busy(batcher)
    futures = batcher.draw([Wish(1), Wish(2, truncation=7)])  # unchecked
    end.set()
    for future in futures:
        with pytest.raises(Exception, match="allowed: -2 to 2"):
            future.result()
    (image,) = batcher.draw([Wish(3)])
    assert image.result().shape == (1, 16, 16)


def test_nobody_waits_for_a_thread_that_has_ended() -> None:
    batcher = Batcher(linear())
    end = busy(batcher)
    (future,) = batcher.draw([Wish(1)])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    end.set()
    closing.join()
    with pytest.raises(CancelledError):
        future.result()
