"""The ledger is one chain: what is repeated alike leaves it as it was, and no line can be changed,
left out, added or garbled without being named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gan_train.adversary import Clock
from gan_train.runs.audit import broken_lines
from gan_train.runs.ledger import LEDGER, Ledger, Parting, compare, read_entries, read_lines
from tests.training import tiny_config

ABOUT = {"device": "a processor", "workers": "1", "threads": "1"}


def enter(run_dir: Path, ticks: range, weight: float = 0.0, about: dict[str, str] = ABOUT) -> None:
    """Enter the weights at some ticks of 10 images, and a checkpoint at every second one."""
    ledger = Ledger(run_dir)
    ledger.start(10 * (ticks.start - 1), tiny_config(Path("s"), Path("w")), "data", about)
    for tick in ticks:
        clock, networks = Clock(tick, 10 * tick), {"w": torch.tensor([tick, weight])}
        ledger.weights(clock, f"sample {tick}", networks, {"loss": tick, "memory_gib": weight})
        if tick % 2 == 0:
            ledger.checkpoint(clock, {"networks": f"{tick} {weight}"})
            ledger.scores(10 * tick, {"fid": tick})


def test_a_repetition_leaves_it_as_it_was(tmp_path: Path) -> None:
    enter(tmp_path, range(1, 7))
    whole = (tmp_path / LEDGER).read_bytes()
    with (tmp_path / LEDGER).open("ab") as file:
        file.write(b'{"kind": "wei')  # a kill in the middle of a line
    enter(tmp_path, range(3, 7))
    assert (tmp_path / LEDGER).read_bytes() == whole
    assert not list(broken_lines(tmp_path, []))


def test_another_past_is_cut_off_in_one_chain(tmp_path: Path) -> None:
    enter(tmp_path, range(1, 7))
    before = (tmp_path / LEDGER).read_bytes()
    first = read_entries(tmp_path)
    enter(tmp_path, range(3, 6), weight=1.0, about=ABOUT | {"device": "another"})
    assert (tmp_path / LEDGER).read_bytes().startswith(before)
    assert not list(broken_lines(tmp_path, []))
    now = read_entries(tmp_path)
    places = [(e["kind"], e["nimg"]) for e in now if e["kind"] in ("start", "weights")]
    weights = [("weights", nimg) for nimg in (10, 20, 30, 40, 50)]
    assert places == [("start", 0), *weights[:2], ("start", 20), *weights[2:]]
    assert compare(first, now) == (3, Parting(30, ("networks",)))
    assert compare(now, now) == (7, None)


def _changed(lines: list[bytes]) -> None:
    lines[3] = lines[3].replace(b'"step": 2', b'"step": 1')


def _spaced(lines: list[bytes]) -> None:
    lines[3] = lines[3].replace(b": ", b":", 1)


def _gone(lines: list[bytes]) -> None:
    del lines[3]


def _twice(lines: list[bytes]) -> None:
    lines.insert(3, lines[2])


def _garbled(lines: list[bytes]) -> None:
    lines[3] = b"\xff" + lines[3][:40]


@pytest.mark.parametrize("harm", [_changed, _spaced, _gone, _twice, _garbled])
def test_any_line_that_was_tampered_with_is_named(
    harm: Callable[[list[bytes]], None], tmp_path: Path
) -> None:
    enter(tmp_path, range(1, 7))
    lines = (tmp_path / LEDGER).read_bytes().split(b"\n")
    harm(lines)
    (tmp_path / LEDGER).write_bytes(b"\n".join(lines))
    (found,) = broken_lines(tmp_path, [])
    assert "line 4 of" in found.words and (found.begin, found.end) in ((20, 20), (10, 20))
    assert [line.number for line in read_lines(tmp_path) if not line.sound] == [4]
