"""Parts that the parsers of all commands share. This file imports only the standard library, so
that help answers at once."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

RECIPE = "a YAML file, or the name of one in configs/"


def add_command(
    commands: Any,
    name: str,
    function: Callable[[argparse.Namespace], int],
    summary: str,
    examples: str = "",
) -> argparse.ArgumentParser:
    """Add a parser whose `command` is `function`. `summary` is its line in the list of commands."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=function)
    return parser


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add the positional argument `recipe`, and what changes its settings."""
    parser.add_argument("recipe", help=RECIPE)
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add `--set KEY=VALUE`, whose values become the list `overrides`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change a setting, such as train.batch=64; may be repeated",
    )


def positive(text: str) -> float:
    """The type of an argument that is a number above 0, such as minutes."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text[:40]}: allowed: a number above 0")
    return value


def add_minutes(parser: argparse.ArgumentParser) -> None:
    """Add `--minutes`, to which the schedule of a new run is fitted."""
    parser.add_argument(
        "--minutes",
        type=positive,
        metavar="M",
        help="make the schedule shorter or longer, so that the whole command takes so long",
    )


def check_minutes(given: argparse.Namespace) -> None:
    """Raise UserError where `--resume` stands beside `--minutes`."""
    from gan_train.errors import UserError

    if given.resume is not None and given.minutes is not None:
        raise UserError(
            f"--minutes {given.minutes:g}: a run that goes on keeps its schedule; leave --minutes "
            "out, or start a new run"
        )


def chosen(given: argparse.Namespace) -> list[str]:
    """The keys that `--set` has set."""
    return [override.partition("=")[0].strip() for override in given.overrides]


def add_examining(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ask for more than scores (`examining.py`)."""
    alone = parser.add_mutually_exclusive_group()
    alone.add_argument(
        "--nearest", metavar="PAGE", type=Path, help="test for copies, and show the nearest pairs"
    )
    alone.add_argument(
        "--self-test",
        action="store_true",
        help="test the measures on the data of the recipe TARGET",
    )
