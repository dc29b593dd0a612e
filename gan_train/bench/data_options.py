"""The arguments of `gan-train bench-data`.

Only the standard library is imported, so that help answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

SUMMARY = "time the data set's way: first batch, memory, images per second, sharding, at any size"
EPILOG = """\
A data set of small pictures is made in a temporary folder, which is removed at the end: a million
pictures take some 4.5 GB and a minute or two. Nothing of it is kept. Each figure is compared, in
the same call, with a plain folder of the same pictures (PIL and PyTorch's DataLoader), with
WebDataset's own loader on the same shards, and with a straightforward converter (PIL, resize,
TarWriter). The forms take turns; times are CPU seconds of one process, its threads included.

  gan-train bench-data                                 a million pictures in a thousand shards
  gan-train bench-data --images 20000 --shards 20      a first look, in a minute or two"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the measurement."""
    parser.add_argument(
        "--images", type=_at_least(100), default=1_000_000, metavar="N", help="default: 1000000"
    )
    parser.add_argument(
        "--shards", type=_at_least(1), default=1000, metavar="N", help="default: 1000"
    )
    parser.add_argument(
        "--side", type=_at_least(4), default=32, metavar="N", help="of the pictures; default: 32"
    )
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="seconds for each timing of a loader; default: 4"
    )
    parser.add_argument(
        "--rounds",
        type=_at_least(1),
        default=5,
        help="the forms take turns so many times; default: 5",
    )
    parser.add_argument(
        "--folder", type=Path, help="where the data set is made; default: the folder for such files"
    )


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: allowed are whole numbers from {least} on")
        return int(text)

    return number
