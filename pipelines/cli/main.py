"""`gan-train`: the command line. This file reads arguments; the work is done elsewhere.

Heavy modules are imported by the command that needs them, so that help and error messages come at
once.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import TYPE_CHECKING, Any

from gan_train.errors import UserError, hide_tracebacks, told
from pipelines.cli import (
    again,
    benching,
    compare,
    completion,
    diff,
    ending,
    export,
    importing,
    listing,
    nightly,
    pictures,
    remote,
    sampling,
    serve,
    stack,
    whence,
)
from pipelines.cli.arguments import (
    RECIPE,
    add_command,
    add_examining,
    add_minutes,
    add_overrides,
    add_recipe,
    check_minutes,
    chosen,
)
from pipelines.cli.ending import STOPPED

if TYPE_CHECKING:
    from gan_train.config import Config
    from gan_train.data.planning import ShardPlan
    from pipelines.flows.price import Prices

_DESCRIPTION = """\
Train GANs from a folder of images to a registered, scored generator.

  gan-train run demo                          shard, train, score, register: all of it
  gan-train run demo --dry-run                what that would do and cost, without doing it
  gan-train run demo --minutes 10             as good as it gets in ten minutes
  gan-train run cifar10-32 --set train.batch=64 --set cluster.workers=4
  gan-train run demo --resume demo-20260131-120000
  gan-train generate demo --seeds 0-63 --class A --out a.png
  gan-train upscale holiday/*.jpg --model srgan-photos-x4
  gan-train interpolate demo --seeds 0-3 --class A --loop --out walk.gif
  gan-train compare demo stylegan2-glyphs --minutes 4 --out compare.html
  gan-train submit demo --address http://head:8265 --set workspace=/shared/runs
  gan-train recipes                           what there is to train; also: runs, versions
  gan-train config demo                       every setting, with its value
"""
_STOPPING = """\
Ctrl-C, SIGTERM and a closed terminal have the workers save a checkpoint first. The exit status is
then 130, 143 or 129, and `--resume RUN` goes on. The second signal of a kind ends it at once."""
_COSTS = """\
What does it cost?   gan-train run demo --dry-run
I have ten minutes:  gan-train run demo --minutes 10

Both take some steps of each stage on this machine first, which lasts some seconds. --dry-run
shows the images per second and the minutes of every stage, and the memory of a worker.
--minutes multiplies every length of the schedule by one factor: stages, fades, the decay of
rates, samples, checkpoints. The run's config.yaml has the new numbers, so `--resume RUN` and a
repetition of that file do not depend on a clock. While it trains, the time left is shown; a
machine that turns out slower takes longer."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 2 for a user's mistake, 3 for a training that has
    diverged, 4 for a full disk, 130, 143 or 129 when stopped."""
    parser = _parser()
    completion.answer(parser)
    given = parser.parse_args(arguments)
    _log_to_terminal()
    command: Callable[[argparse.Namespace], int] = given.command
    if not given.debug:
        hide_tracebacks()

    try:
        with ending.interruptible():
            status = command(given)
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        if ending.reader_is_there():
            raise
        return 1
    except (UserError, OSError, FloatingPointError) as error:
        return ending.left(told(error, given.debug))
    except KeyboardInterrupt as interrupt:
        return ending.stopped(interrupt)


def _log_to_terminal() -> None:
    """Show only this project's own warnings. Ray, Prefect and MLflow log to their own files and
    UIs."""
    from gan_train.text import VisibleFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(VisibleFormatter("%(levelname)s: %(message)s"))
    for name in ("gan_train", "pipelines"):
        logging.getLogger(name).handlers = [handler]
        logging.getLogger(name).propagate = False


# ---- arguments ---------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gan-train",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--debug", action="store_true", help="show errors with their traceback; before COMMAND"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = add_command(
        commands, "run", _run, "shard, train, score and register", f"{_COSTS}\n\n{_STOPPING}"
    )
    add_recipe(run)
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="show the plan, and what it costs in time and memory, and start nothing",
    )
    add_minutes(run)
    run.add_argument("--resume", metavar="RUN", help="go on with this run")

    shard = add_command(commands, "shard", _shard, "turn images into verified WebDataset shards")
    add_recipe(shard)
    shard.add_argument(
        "--verify",
        action="store_true",
        help="read every file of the source and the shards again, also those that look unchanged",
    )

    train = add_command(
        commands,
        "train",
        _train,
        "train on shards that are there",
        "As a Ray job:  ray job submit --submission-id my-run -- gan-train train demo\n"
        "Without Ray:   gan-train train demo --plain\n"
        "With torchrun: torchrun --nproc-per-node 2 -m gan_train demo",
    )
    add_recipe(train)
    add_minutes(train)
    train.add_argument("--resume", metavar="RUN", help="go on with this run")
    train.add_argument(
        "--plain", action="store_true", help="in this process, without Ray, Prefect and MLflow"
    )

    evaluate = add_command(
        commands,
        "evaluate",
        _evaluate,
        "score checkpoints",
        "  gan-train evaluate demo-20260131-120000\n"
        "  gan-train evaluate runs/train/demo-20260131-120000/checkpoints/000000108000 "
        "--set evaluate.images=10000\n\n"
        "Of a run, checkpoints that have no scores yet are scored, and `promote` then knows them.\n"
        "With other `evaluate` settings than the run's, all its checkpoints are scored anew, and\n"
        "nothing is written, as for a checkpoint's folder or a downloaded generator.\n"
        "docs/measures.md says how to score on the features of DINOv2 and CLIP.",
    )
    evaluate.add_argument("target", help="a run, a checkpoint's folder, or a downloaded generator")
    add_examining(evaluate)
    evaluate.add_argument(
        "--recipe", help="the data and protocol to score with; default: those of the run"
    )
    add_overrides(evaluate)

    sampling.add(commands)
    pictures.add(commands)
    serve.add(commands)
    importing.add(commands)
    export.add(commands)
    whence.add(commands)
    compare.add(commands)
    diff.add(commands)
    listing.add(commands)
    again.add(commands)
    nightly.add(commands)
    stack.add(commands)
    remote.add(commands)
    benching.add(commands)
    completion.add(commands)

    promote = add_command(
        commands, "promote", _promote, "register the best of a run, or choose the champion by hand"
    )
    add_recipe(promote)
    what = promote.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", metavar="RUN", help="register its best generator")
    what.add_argument("--version", type=int, help="make this version champion")
    promote.add_argument(
        "--force", action="store_true", help="also where the scores are not comparable"
    )

    config = add_command(commands, "config", _config, "show the resolved configuration")
    config.add_argument("recipe", nargs="?", help=RECIPE)
    config.add_argument("--schema", action="store_true", help="print the JSON Schema of recipes")
    add_overrides(config)
    return parser


# ---- commands ----------------------------------------------------------------------------------


def _flow(config: Config, name: str, *arguments: Any, plan: ShardPlan | None = None) -> Any:
    """Run a flow in this process, with `plan` as the plan of its data if given; returns its result,
    or None when it was cancelled."""
    print("gan-train: getting Prefect and Ray ready ...", file=sys.stderr, flush=True)
    from pipelines.compute import cluster
    from pipelines.flows import prefect_env

    with ExitStack() as held:
        trains = name in ("run_flow", "train_flow")
        ray = cluster.begun(config.cluster) if trains else nullcontext()
        prefect_env.prepare(config, lambda: held.enter_context(ray))
        from pipelines.compute import sharding
        from pipelines.flows import pipeline

        if plan is not None:
            held.enter_context(sharding.planned(config, plan))
        state = pipeline.final_state(getattr(pipeline, name), config, *arguments)
    if state.is_cancelled():
        print(f"gan-train: {state.message}", file=sys.stderr)
        return None
    return state.result()


def _prices(config: Config, data: ShardPlan, *, plain: bool = False) -> Prices:
    """What the run costs on this machine: takes some seconds."""
    from pipelines.flows import plan, price

    print("gan-train: trying some steps to see what they cost ...", file=sys.stderr, flush=True)
    return price.Prices(config, data, plan.image_shape(config, data), plain=plain)


def _fitted(given: argparse.Namespace, config: Config, data: ShardPlan, prices: Prices) -> Config:
    """The configuration with its schedule fitted to --minutes."""
    from pipelines.flows import plan, price

    found = price.fitted(
        config, given.minutes, prices, plan.image_shape(config, data), chosen(given)
    )
    print(f"gan-train: {price.change_in_words(config, found)}", file=sys.stderr, flush=True)
    return found


def _to_train(given: argparse.Namespace) -> Config:
    """The configuration of a run, new or resumed: a resumed run keeps the schedule to which
    --minutes once fitted it."""
    from gan_train.runs import run_folder
    from gan_train.training import fitting
    from pipelines.cli.loading import loaded

    check_minutes(given)
    config = loaded(given)
    if given.resume is None:
        return config
    started = run_folder.configuration(run_folder.find(config, given.resume))
    return fitting.schedule_of_run(config, started, chosen(given))


def _run(given: argparse.Namespace) -> int:
    from pipelines.flows import plan

    config = _to_train(given)
    data = plan.precheck(config)
    if given.dry_run or given.minutes is not None:
        prices = _prices(config, data)
        if given.minutes is not None:
            config = _fitted(given, config, data, prices)
        if given.dry_run:
            print(plan.describe(config, data, prices))
            return 0
    from pipelines.cli import summary

    done = _flow(config, "run_flow", given.resume, plan=data)
    if done is None:
        return STOPPED
    run_dir, registration = done
    print(summary.run_summary(config, run_dir, registration))
    return 0


def _shard(given: argparse.Namespace) -> int:
    from pipelines.cli.loading import loaded

    config = loaded(given)
    from pipelines.flows import plan

    data = plan.precheck(config, verify=given.verify)
    directory = _flow(config, "shard_flow", given.verify, plan=data)
    if directory is None:
        return STOPPED
    print(f"shards      {directory}")
    return 0


def _train(given: argparse.Namespace) -> int:
    config = _to_train(given)
    if given.minutes is not None:
        from pipelines.flows import plan

        data = plan.precheck(config)
        config = _fitted(given, config, data, _prices(config, data, plain=given.plain))
    if given.plain:
        from gan_train.__main__ import train_plain

        logging.getLogger("gan_train").setLevel(logging.INFO)
        trained = train_plain(config, given.resume)
        if trained.status == 0:  # else the terminal may be gone
            print(f"run         {trained.run_dir}")
        return trained.status
    from pipelines.flows import plan

    data = plan.precheck(config)
    run_dir = _flow(config, "train_flow", given.resume, plan=data)
    if run_dir is None:
        return STOPPED
    print(f"run         {run_dir}")
    return 0


def _evaluate(given: argparse.Namespace) -> int:
    from gan_train.runs import run_folder
    from pipelines.cli import summary
    from pipelines.cli.loading import loaded, ready

    given.recipe = given.recipe or (given.target if given.self_test else None)
    if given.recipe is not None:
        config = loaded(given)
    else:
        config = ready(run_folder.configuration_of(given.target, given.overrides))
    if given.self_test or given.nearest:
        from pipelines.cli import examining

        print(examining.examine(config, given.target, given.nearest))
        return 0
    rows = _flow(config, "evaluate_flow", given.target)
    if rows is None:
        return STOPPED
    print(summary.table(rows))
    return 0


def _promote(given: argparse.Namespace) -> int:
    from pipelines.cli.loading import loaded

    config = loaded(given)
    registration = _flow(config, "promote_flow", given.run, given.version, given.force)
    if registration is None:
        return STOPPED
    print(
        f"{registration.model} version {registration.version} is {registration.alias}: "
        f"{registration.reason}\n{registration.ui}"
    )
    return 0


def _config(given: argparse.Namespace) -> int:
    from gan_train import recipes
    from gan_train.config import Config

    if given.schema:
        print(json.dumps(Config.model_json_schema(), indent=2))
        return 0
    if given.recipe is None:
        raise UserError("config: name a recipe, or ask for the --schema")
    print(recipes.dump(recipes.load(given.recipe, given.overrides)), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
