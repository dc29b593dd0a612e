"""One process at a time trains a run, whoever started it, on one machine or on several."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gan_train.__main__ import train_plain
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.runs import claim, run_folder
from gan_train.runs.shared import Superseded
from tests.training import tiny_config

_HOLD = """
import sys, time
from pathlib import Path
from gan_train.runs.claim import claimed
with claimed(Path(sys.argv[1]), "theirs"):
    print("held", flush=True)
    time.sleep(600)
"""


def elsewhere(run_dir: Path, age_s: float | None = None) -> None:
    """The newest claim becomes that of another machine, touched `age_s` seconds ago, or when it
    was."""
    path = max((run_dir / claim.FOLDER).iterdir())
    touched = path.stat().st_mtime if age_s is None else time.time() - age_s
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "another"}))
    os.utime(path, (touched, touched))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    monkeypatch.setattr(claim, "POLL_S", 0.01)
    return lambda seconds: monkeypatch.setattr(claim, "LIFE_S", seconds)


def test_a_process_of_this_machine(tmp_path: Path, quick: Callable[[float], None]) -> None:
    """Nobody trains beside it, and a kill frees its claim at once."""
    held = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert held.stdout is not None and held.stdout.readline() == "held\n"
    assert claim.holder_of(tmp_path, "mine") is not None
    quick(0.15)
    with pytest.raises(UserError, match=f"trained by process {held.pid} on"):
        claim.wait_until_free(tmp_path)
    with pytest.raises(Superseded), claim.claimed(tmp_path, "mine"):
        pass
    quick(60)
    held.send_signal(signal.SIGKILL)
    held.communicate()
    claim.wait_until_free(tmp_path)
    with claim.claimed(tmp_path, "mine"):
        assert claim.holder_of(tmp_path) is not None


def test_a_process_of_another_machine(tmp_path: Path, quick: Callable[[float], None]) -> None:
    with claim.claimed(tmp_path, "theirs"):
        pass
    assert claim.holder_of(tmp_path, "mine") is None
    elsewhere(tmp_path, 1)
    assert claim.holder_of(tmp_path, "mine") is not None
    # a worker of the same training takes over at once, and others when it was not touched for long
    with claim.claimed(tmp_path, "theirs"):
        pass
    elsewhere(tmp_path, 61)
    quick(60)
    with claim.claimed(tmp_path, "mine"):
        pass
    elsewhere(tmp_path)  # after its end, it is free elsewhere, too
    with claim.claimed(tmp_path, "theirs") as held:
        held.check()
    assert len(list((tmp_path / claim.FOLDER).iterdir())) == 1


def test_who_was_taken_for_dead_notices(tmp_path: Path, quick: Callable[[float], None]) -> None:
    quick(0.3)
    with claim.claimed(tmp_path, "slow") as slow:
        elsewhere(tmp_path, 9)
        with claim.claimed(tmp_path, "other") as other:
            time.sleep(0.4)
            other.check()
            with pytest.raises(Superseded):
                slow.check()


def test_one_of_many(tmp_path: Path, quick: Callable[[float], None]) -> None:
    inside, most = [0], [0]
    guard = threading.Lock()

    def work(number: int) -> None:
        with claim.claimed(tmp_path, f"owner-{number}"):
            with guard:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.01)
            with guard:
                inside[0] -= 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and inside == [0]


def test_plain_training_heeds_and_makes_claims(
    tiny_source: Path, tmp_path: Path, quick: Callable[[float], None]
) -> None:
    config = tiny_config(tiny_source, tmp_path / "workspace", train__total_kimg=0.032)
    run_dir = run_folder.new(config, shard(config.data, config.workspace))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with claim.claimed(run_dir, "a Ray job"):
            quick(0.1)
            with pytest.raises(UserError, match="is being trained by process"):
                train_plain(config, run_dir.name)
        train_plain(config, run_dir.name)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    (path,) = (run_dir / claim.FOLDER).iterdir()
    assert path.name == "000002" and claim.holder_of(run_dir) is None
