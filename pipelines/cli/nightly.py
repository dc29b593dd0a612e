"""`gan-train nightly`: what a nightly deployment does, once and now.

This file only reads arguments. `pipelines/flows/nightly.py` does the work.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pipelines.cli.arguments import add_command, add_overrides
from pipelines.cli.ending import STOPPED


def add(commands: Any) -> None:
    """Add the command to a parser's list."""
    nightly = add_command(
        commands,
        "nightly",
        _nightly,
        "shard what is new, and train on from the champion",
        "Ends at once where no image is new since the newest version. Otherwise only new images\n"
        "are sharded, the champion is scored on all, and a run begins with its networks. It is\n"
        "champion if it is better beyond chance.\n\n"
        "Every night, by a deployment: infra/prefect/prefect.yaml",
    )
    nightly.add_argument("recipe", help="a YAML file, or the name of one in configs/")
    add_overrides(nightly)


def _nightly(given: argparse.Namespace) -> int:
    from gan_train import recipes
    from pipelines.cli.loading import ready
    from pipelines.flows import plan, prefect_env

    config = plan.growing(ready(recipes.load(given.recipe, given.overrides)))
    data = plan.precheck(config)
    prefect_env.prepare(config)
    from pipelines.cli import summary
    from pipelines.compute import sharding
    from pipelines.flows.nightly import NOTHING_NEW, nightly_flow
    from pipelines.flows.pipeline import final_state

    with sharding.planned(config, data):
        state = final_state(nightly_flow, config)
    if state.is_cancelled():
        print(f"gan-train: {state.message}", file=sys.stderr)
        return STOPPED
    if state.name == NOTHING_NEW:
        print(f"gan-train: {state.message}")
        return 0
    run_dir, registration = state.result()
    print(summary.run_summary(config, run_dir, registration))
    return 0
