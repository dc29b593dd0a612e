"""`gan-train bench`, `bench-step` and `bench-data`: what the parts cost.

This file reads arguments; the work is done in `gan_train.bench` and `pipelines.flows.overhead`.
"""

from __future__ import annotations

import argparse
from typing import Any

from gan_train.bench import data_options, options
from pipelines.cli.arguments import add_command, add_recipe, positive


def add(commands: Any) -> None:
    """Add the commands to a parser's list."""
    bench = add_command(
        commands,
        "bench",
        _bench,
        "time sharding, loader, scoring, training step and the whole pipeline",
        "Ratios are the figures to compare: of several workers to one, of the pipeline to the bare "
        "loop.\nLeave the machine alone meanwhile; with the demo it takes about five minutes.",
    )
    add_recipe(bench)
    bench.add_argument(
        "--seconds", type=positive, default=15, help="seconds for each timing of the step"
    )
    bench.add_argument("--rounds", type=int, default=3, help="rounds, whose median ratio counts")

    bench_step = add_command(commands, "bench-step", _bench_step, options.SUMMARY, options.EPILOG)
    add_recipe(bench_step)
    options.add_arguments(bench_step)

    bench_data = add_command(
        commands, "bench-data", _bench_data, data_options.SUMMARY, data_options.EPILOG
    )
    data_options.add_arguments(bench_data)


def _bench(given: argparse.Namespace) -> int:
    from pipelines.cli.loading import loaded
    from pipelines.flows import plan

    config = loaded(given)

    plan.precheck(config)
    from pipelines.flows.overhead import measure

    for line in measure(config, given.seconds, given.rounds):
        print(line, flush=True)
    return 0


def _bench_step(given: argparse.Namespace) -> int:
    from gan_train.bench.step import measure

    options = {key: value for key, value in vars(given).items() if key not in ("command", "debug")}
    for line in measure(**options):
        print(line, flush=True)
    return 0


def _bench_data(given: argparse.Namespace) -> int:
    from gan_train.bench.data import measure

    options = {key: value for key, value in vars(given).items() if key not in ("command", "debug")}
    for line in measure(**options):
        print(line, flush=True)
    return 0
