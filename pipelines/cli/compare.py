"""`gan-train compare`: several recipes, the same data and budget, one report.

This file only reads arguments. `pipelines/comparison/plan.py` decides what is compared, and
`pipelines/comparison/flow.py`, imported only when it is needed, runs the comparison.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from pipelines.cli import diff
from pipelines.cli.arguments import add_command, add_overrides
from pipelines.cli.ending import STOPPED

FAILED = 1


def add(commands: Any) -> None:
    """Add the command to a parser's list."""
    compare = add_command(
        commands,
        "compare",
        _compare,
        "train recipes on the same data with the same budget, and report",
        "  gan-train compare demo stylegan2-glyphs --minutes 4 --out compare.html\n"
        "  gan-train compare demo stylegan2-glyphs --kimg 60 --set evaluate.images=1000\n"
        "  gan-train compare demo stylegan2-glyphs --minutes 4 --seeds 3\n"
        "  gan-train compare demo stylegan2-glyphs --minutes 4 --dry-run\n\n"
        "All get the data and the protocol of scoring of the first recipe (or of --data). Stopped\n"
        "by Ctrl-C, the same command goes on; what is finished is not trained again. To start\n"
        "over, delete its folder in <workspace>/compare. With --seeds 3 each recipe is trained\n"
        "three times, from its own seed (--set seed=7) on, and the report tells which one is\n"
        "better and how sure that is; a greater number adds to the trainings that are there. Two\n"
        "versions (models:/NAME/3) are compared as by `gan-train diff`, without a budget.",
    )
    compare.add_argument("recipes", nargs="+", metavar="RECIPE", help="YAML files, or names")
    budget = compare.add_mutually_exclusive_group()
    budget.add_argument("--kimg", type=float, metavar="K", help="thousands of images for each")
    budget.add_argument("--minutes", type=float, metavar="M", help="minutes of training for each")
    compare.add_argument("--data", metavar="RECIPE", help="whose data and protocol all get")
    compare.add_argument("--workers", type=int, metavar="N", help="for each; default: its own")
    compare.add_argument(
        "--seeds", type=int, metavar="N", help="trainings of each, with a seed each; default: 1"
    )
    compare.add_argument("--at-once", type=int, metavar="N", help="side by side, at most")
    compare.add_argument("--target", type=float, metavar="SCORE", help="tell the time it took")
    compare.add_argument("--out", type=Path, metavar="FILE", help="a copy of the page, as .html")
    compare.add_argument("--dry-run", action="store_true", help="show the plan and start nothing")
    add_overrides(compare)


def _versions(given: argparse.Namespace) -> int:
    """Compare two versions in place of recipes."""
    from gan_train.errors import UserError

    idle = ("kimg", "minutes", "data", "workers", "seeds", "at_once", "target")
    if len(given.recipes) != 2 or given.dry_run or any(getattr(given, name) for name in idle):
        raise UserError(
            "versions are compared two at a time and without training: name two of them, and "
            "leave out all but --out and --set"
        )
    left, right = given.recipes
    diff.show(left, right, given.overrides, given.out or diff.PAGE, attach=True)
    return 0


def _compare(given: argparse.Namespace) -> int:
    from gan_train.errors import UserError

    if all(name.startswith("models:") for name in given.recipes):
        return _versions(given)
    if given.kimg is None and given.minutes is None:
        raise UserError("how long shall each train? name a budget: --minutes M or --kimg K")
    from pipelines.comparison import plan
    from pipelines.stack import discovery

    for name in ("kimg", "minutes", "workers", "seeds", "at_once"):
        value = getattr(given, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: allowed: more than 0")
    if given.out is not None and given.out.suffix != ".html":
        raise UserError(f"--out {given.out}: the report is a page, name a file ending in .html")
    wanted = plan.planned(
        given.recipes,
        given.overrides,
        data=given.data,
        kimg=given.kimg,
        minutes=given.minutes,
        workers=given.workers,
        seeds=given.seeds or 1,
        at_once=given.at_once,
        target=given.target,
    )
    discovery.use(wanted.configs[0])
    if given.dry_run:
        print(plan.describe(wanted))
        return 0
    from pipelines.flows import prefect_env

    prefect_env.prepare(wanted.configs[0])
    from pipelines.comparison import flow, report
    from pipelines.flows.pipeline import final_state

    out = given.out and given.out.absolute()
    state = final_state(flow.compare_flow, wanted, out)
    if state.is_cancelled():
        print(f"gan-train: {state.message}", file=sys.stderr)
        return STOPPED
    facts = state.result()
    print(report.text(facts))
    print(f"\nreport      {out or wanted.folder / flow.PAGE}")
    for entry in facts.entries:
        print(f"run         {entry.run}")
    failed = [entry for entry in facts.entries if entry.error]
    for entry in failed:
        print(f"gan-train: {entry.label} failed: {entry.error}", file=sys.stderr)
    return FAILED if failed else 0
