"""Leases in a real S3 server: one holder, heirs of the dead, and no heir of the living."""

from __future__ import annotations

import threading
import time

import pytest

from gan_train.files import lease
from gan_train.files.lease import Held, holder_of, leased
from gan_train.files.store import Store

KEY = "locks/one"


def test_one_holds_it_and_the_next_gets_it(in_bucket: str) -> None:
    store = Store(in_bucket)
    assert holder_of(store, KEY) is None
    with leased(store, KEY, wait=False):
        assert holder_of(store, KEY) is not None
        with pytest.raises(Held, match=r"process \d+ on "), leased(store, KEY, wait=False):
            pass
    assert holder_of(store, KEY) is None
    with leased(store, KEY, wait=False):
        pass


def test_waiting_for_it(in_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "POLL_S", 0.02)
    store, inside, most = Store(in_bucket), [0], [0]

    def work() -> None:
        with leased(store, KEY, wait=True):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and inside == [0]


def test_it_is_renewed_while_it_is_held(in_bucket: str) -> None:
    store = Store(in_bucket)
    with leased(store, KEY, wait=False, life_s=1.5):
        time.sleep(3)
        with pytest.raises(Held), leased(store, KEY, wait=False):
            pass


def test_a_dead_holder_loses_it(in_bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """A holder that does not renew, because it is dead or hangs, and comes back too late."""
    store = Store(in_bucket)
    dead = lease._Lease(store, KEY, life_s=0.2)
    assert dead.take() is None
    time.sleep(0.3)
    with leased(store, KEY, wait=False):
        dead.release()
        holder = holder_of(store, KEY)
        assert holder is not None and holder != dead._owner
        ended = threading.Event()
        dead._life_s = 0.03
        dead.renew_until(ended)  # returns at once, because the lease is another's
        assert "was lost" in caplog.text and holder_of(store, KEY) == holder
