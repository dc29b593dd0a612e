"""Feeds a reader mutated files: each must end in time, within memory, with a value or an error that
the reader promises.

Input `n` of a seed is always the same bytes, so a finding is repeated by its number:

    python -m tests.fuzz.pictures --inputs 100000
    python -m tests.fuzz.pictures --start 31415 --inputs 1

A module of this package has the whole files that are mutated, and a target, and calls `main`. A
small run in the ordinary tests calls `fuzz`, and asserts that it finds nothing.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Target = Callable[[bytes], object]
"""A reader. What it returns does not count, only that it returns; it may raise what is allowed, and
an `AssertionError` where what it read is wrong."""

FINDINGS = Path("build/fuzz")
_VALUES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_LONGEST = 1 << 20  # bytes of an input; insertions do not make it longer


class Finding(NamedTuple):
    """An input on which the reader did not keep its promise, and what happened."""

    number: int
    what: str
    data: bytes


@dataclass
class Report:
    """What came of a run: how many inputs were read as if they were whole, how many were refused by
    an allowed error, and the findings."""

    read: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    findings: list[Finding] = field(default_factory=list)


class _OutOfTime(BaseException):
    """Raised by the timer: no reader's `except Exception` holds it."""


def fuzz(
    target: Target,
    seeds: Sequence[bytes],
    allowed: tuple[type[Exception], ...],
    inputs: int,
    *,
    seed: int = 0,
    start: int = 0,
    tokens: Sequence[bytes] = (),
    seconds: float = 2.0,
    megabytes: int = 1024,
    began: Callable[[int], object] = lambda number: None,
) -> Report:
    """Call `target` with the inputs from `start` to `start + inputs - 1` of a seed.

    An input is a finding if `target` raises an error that is not in `allowed`, takes more than
    `seconds` of CPU time, or asks for more memory than `megabytes` beyond what the process has,
    also where it says so by an allowed error. `began` is called with each input's number before it
    is read. The CPU time's signal must be free, and this the main thread.
    """
    report = Report()
    with _memory(megabytes), _timer():
        for number in range(start, start + inputs):
            data = mutated(seeds, seed, number, tokens)
            began(number)
            what, took = _outcome(target, data, allowed, seconds)
            report.slowest_s = max(report.slowest_s, took)
            if what is None:
                report.read += 1
            elif not what:
                report.refused += 1
            else:
                report.findings.append(Finding(number, what, data))
    return report


def _outcome(
    target: Target, data: bytes, allowed: tuple[type[Exception], ...], seconds: float
) -> tuple[str | None, float]:
    """None for data that were read, "" for refused ones, or what went wrong; and CPU seconds."""
    what: str | None
    begun = time.process_time()
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            target(data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        what = None
    except _OutOfTime:
        what = f"more than {seconds} s"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        refused = isinstance(error, allowed) and not _lacked_memory(error)
        what = "" if refused else "".join(traceback.format_exception(error))
    took = time.process_time() - begun
    if took > seconds and not what:  # within one call of C, during which no signal is handled
        what = f"{took:.1f} s, allowed are {seconds}"
    return what, took


def _lacked_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def _memory(megabytes: int) -> Iterator[None]:
    """Let the process take only so much more memory, for Python and for libraries in C."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def _timer() -> Iterator[None]:
    """Have the timer of CPU time raise `_OutOfTime`. (That of the clock is pytest-timeout's.)"""

    def expired(*_: Any) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGPROF, expired)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, before)


# ---- inputs --------------------------------------------------------------------------------------


def mutated(seeds: Sequence[bytes], seed: int, number: int, tokens: Sequence[bytes] = ()) -> bytes:
    """Input `number` of a seed: one of `seeds` after one to eight changes. `tokens` are words of
    the format, which are put in at random places."""
    draw = random.Random(seed << 40 | number)
    data = bytearray(draw.choice(seeds))
    kinds = _CHANGES if tokens else _CHANGES[:-1]
    for _ in range(1 << draw.randrange(4)):
        draw.choice(kinds)(data, draw, seeds, tokens)
    return bytes(data[:_LONGEST])


def _flip(data: bytearray, draw: random.Random, *_: Any) -> None:
    if data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _byte(data: bytearray, draw: random.Random, *_: Any) -> None:
    if data:
        data[draw.randrange(len(data))] = draw.randrange(256)


def _head(data: bytearray, draw: random.Random, *_: Any) -> None:
    """Change a byte near the beginning, where formats keep their sizes."""
    if data:
        data[draw.randrange(min(64, len(data)))] = draw.randrange(256)


def _number(data: bytearray, draw: random.Random, *_: Any) -> None:
    """Put a number at the edge of its range over 1, 2, 4 or 8 bytes."""
    size, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
    at = draw.randrange(max(1, len(data) - size + 1))
    value = (draw.choice(_VALUES) + draw.choice((-1, 0, 0, 1))) % (1 << 8 * size)
    data[at : at + size] = value.to_bytes(size, order)  # type: ignore[arg-type]


def _span(data: bytearray, draw: random.Random) -> slice:
    at = draw.randrange(len(data) + 1)
    return slice(at, at + draw.choice((1, 4, 16, 64, 512, 4096)))


def _cut(data: bytearray, draw: random.Random, *_: Any) -> None:
    del data[draw.randrange(len(data) + 1) :]


def _remove(data: bytearray, draw: random.Random, *_: Any) -> None:
    del data[_span(data, draw)]


def _zero(data: bytearray, draw: random.Random, *_: Any) -> None:
    span = _span(data, draw)
    data[span] = bytes(len(data[span]))


def _repeat(data: bytearray, draw: random.Random, *_: Any) -> None:
    """Put a piece of the file in elsewhere, up to a hundred times."""
    piece, at = data[_span(data, draw)], draw.randrange(len(data) + 1)
    data[at:at] = piece * draw.choice((1, 1, 1, 2, 10, 100))


def _swap(data: bytearray, draw: random.Random, *_: Any) -> None:
    one, other = _span(data, draw), _span(data, draw)
    data[one], data[other] = data[other], data[one]


def _cross(
    data: bytearray, draw: random.Random, seeds: Sequence[bytes], _: Sequence[bytes]
) -> None:
    """Go on as another file, from the same or any other place."""
    other = draw.choice(seeds)
    at = draw.randrange(len(data) + 1)
    data[at:] = other[at if draw.random() < 0.5 else draw.randrange(len(other) + 1) :]


def _token(
    data: bytearray, draw: random.Random, _: Sequence[bytes], tokens: Sequence[bytes]
) -> None:
    word, at = draw.choice(tokens), draw.randrange(len(data) + 1)
    over = len(word) if draw.random() < 0.5 else 0
    data[at : at + over] = word


_CHANGES: tuple[Callable[..., None], ...] = (
    *(_flip, _flip, _byte, _head, _number, _number),
    *(_cut, _remove, _zero, _repeat, _swap, _cross),
    _token,  # the last: left out where there are no tokens
)


# ---- from the command line -----------------------------------------------------------------------


def main(
    name: str,
    target: Target,
    seeds: Sequence[bytes],
    allowed: tuple[type[Exception], ...],
    tokens: Sequence[bytes] = (),
    **limits: Any,
) -> int:
    """Fuzz as the command line asks, print what came of it, and write each finding's bytes into
    build/fuzz; returns 1 if there are findings. `NAME.at` there holds the number of the input that
    is being read, for a reader that ends the whole process."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.fuzz.{name}")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the number of the first input")
    asked = parser.parse_args()
    faulthandler.enable()
    FINDINGS.mkdir(parents=True, exist_ok=True)
    with (FINDINGS / f"{name}.at").open("wb", buffering=0) as at:
        report = fuzz(
            target,
            seeds,
            allowed,
            asked.inputs,
            seed=asked.seed,
            start=asked.start,
            tokens=tokens,
            began=lambda number: os.pwrite(at.fileno(), b"%-20d\n" % number, 0),
            **limits,
        )
    for finding in report.findings:
        (FINDINGS / f"{name}-{asked.seed}-{finding.number}.bin").write_bytes(finding.data)
    for what, numbers in _grouped(report.findings).items():
        print(f"{len(numbers)} inputs, such as {numbers[:3]}:\n{what}", file=sys.stderr)
    print(
        f"{name}: {asked.inputs} inputs, {report.read} read, {report.refused} refused, "
        f"{len(report.findings)} findings, slowest {report.slowest_s:.2f} s"
    )
    return 1 if report.findings else 0


def _grouped(findings: Sequence[Finding]) -> dict[str, list[int]]:
    """The numbers of the inputs by the last place in the code, with the first one's whole text."""
    first: dict[str, str] = {}
    numbers: dict[str, list[int]] = {}
    for number, what, _ in findings:
        places = [line for line in what.splitlines() if line.startswith("  File ")]
        text = first.setdefault(places[-1] if places else what, what)
        numbers.setdefault(text, []).append(number)
    return numbers
