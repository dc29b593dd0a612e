"""`gan-train verify` and `reproduce`: whether a run is what its ledger says, and whether a
registered version can be trained again.

This file reads arguments and lays out lines; the work is done in `gan_train/training/` and in
`pipelines/flows/reproduction.py`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gan_train.text import visible
from pipelines.cli.arguments import add_command, add_overrides
from pipelines.cli.sampling import add_model

if TYPE_CHECKING:
    from gan_train.training.verification import Row

_DIFFERS = 1


def add(commands: Any) -> None:
    """Add the commands to a parser's list."""
    verify = add_command(
        commands,
        "verify",
        _verify,
        "train a run again, or a stretch of it, and compare it with its ledger",
        "  gan-train verify demo-20260131-120000 --from 40 --to 60\n"
        "  gan-train verify demo-20260131-120000 --files\n\n"
        "First the files are checked: the chain of the ledger, curves and scores in the event\n"
        "log, and the tensors of every checkpoint. Then the weights are trained again, from the\n"
        "last checkpoint that can be resumed before --from, or from the start, and compared entry\n"
        "by entry. That takes as long as it took then; nothing is written into the run. The exit\n"
        "status is 0 where all is the same, and 1 where something is not.",
    )
    verify.add_argument("run", help="a run's name in --workspace, or its folder")
    verify.add_argument("--from", dest="begin", type=_kimg, metavar="KIMG", default=0)
    verify.add_argument("--to", dest="until", type=_kimg, metavar="KIMG")
    verify.add_argument(
        "--files", action="store_true", help="check the files alone, and train nothing"
    )
    verify.add_argument(
        "--workspace",
        default="runs",
        metavar="PLACE",
        help="where the run is; default: %(default)s",
    )

    reproduce = add_command(
        commands,
        "reproduce",
        _reproduce,
        "train a registered version again, and compare the weights",
        "  gan-train reproduce models:/progan-demo/3\n"
        "  gan-train reproduce demo --version champion --set workspace=elsewhere\n\n"
        "Configuration, data, threads and number of workers are those of the ledger that was\n"
        "registered with it. The data must be in the workspace, or where they were. One worker\n"
        "trains in this process, several under Ray. With a workspace in a bucket, one worker\n"
        "trains in a folder of this machine. The exit status is 0 where all bits are the same,\n"
        "and 1 where they are not.",
    )
    add_model(reproduce)
    add_overrides(reproduce)


def _kimg(text: str) -> int:
    """The type of an argument in thousands of images: the number of images."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e12:
        raise argparse.ArgumentTypeError(f"{text[:40]}: allowed: a number of kimg from 0 on")
    return round(value * 1000)


def _verify(given: argparse.Namespace) -> int:
    from gan_train import recipes
    from gan_train.errors import UserError
    from gan_train.runs import run_folder

    if given.files and (given.begin or given.until is not None):
        raise UserError("--files trains nothing again: leave out --from and --to")
    if given.until is not None and given.until <= given.begin:
        raise UserError("--to must be more than --from")
    anywhere = recipes.load(str(recipes.SHIPPED / "demo.yaml"), [f"workspace={given.workspace}"])
    with run_folder.as_stored(recipes.with_absolute_paths(anywhere), given.run) as run_dir:
        return _check(run_dir, given)


def _check(run_dir: Path, given: argparse.Namespace) -> int:
    from gan_train.training.verification import check_files, environments, repeat

    faults = 0
    print(_line("stretch, kimg", "entries", "result"))
    for row in check_files(run_dir):
        faults += 1
        _tell(row)
    if given.files:
        if not faults:
            print(_line("all", "-", "the files are those that were written"))
        return _DIFFERS if faults else 0
    otherwise, parted = environments(run_dir, given.begin), 0
    for words in otherwise:
        print(visible(_line("", "", words)), flush=True)
    for row in repeat(run_dir, given.begin, given.until):
        parted += bool(row.fault)
        _tell(row)
    if parted and otherwise:
        print(
            "The environment is another one than the recorded one, as is said above: sums may be "
            "rounded otherwise here, and what differs in a replay may be no fault. Repeat it on a "
            "machine of the recorded kind"
        )
    return _DIFFERS if faults or parted else 0


def _tell(row: Row) -> None:
    place = f"{row.begin / 1000:g}" + f" - {row.end / 1000:g}" * (row.end > row.begin)
    count = "-" if row.same is None else str(row.same)
    print(visible(_line(place, count, row.fault or "same")), flush=True)


def _reproduce(given: argparse.Namespace) -> int:
    from gan_train.errors import UserError
    from pipelines.cli.loading import ready
    from pipelines.cli.sampling import registered_model
    from pipelines.flows import reproduction
    from pipelines.registry.recorded import recorded

    registered = registered_model(given)
    if registered is None:
        raise UserError(f"{given.model}: allowed: a registered version, as models:/NAME/VERSION")
    place = ready(registered[0])
    version = recorded(place, registered[1])
    config = reproduction.configuration(version, place, given.overrides)
    otherwise = reproduction.environment_differences(version, config)
    about = version.start["environment"]
    told = (
        f"version     {version.model} version {version.number}, from {version.run}\n"
        f"trained     {version.nimg / 1000:g} kimg, seed {config.seed}, {about['workers']} workers "
        f"of {about['threads']} threads, {about['precision']}, on {about['device']}"
    )
    print(visible("\n".join([told, *(f"differs     {words}" for words in otherwise)])))
    shards = reproduction.data_of(version, config, place)
    print(f"data        {version.start['data'][:12]} in {shards}", flush=True)
    run_dir, status = reproduction.train_again(config, shards)
    if status:
        return status
    found = reproduction.compared(version, run_dir)
    print(f"run         {run_dir}")
    if found.score is not None:
        print(f"{version.metric.ljust(11)} {version.score:.6g} recorded, {found.score:.6g} here")
    if not found.differences:
        print("weights     bit-identical to those registered")
        return 0
    for network, apart in found.differences.items():
        print(
            f"weights     {network} differs by at most {apart.largest:.3g}, and as a whole by "
            f"{apart.relative:.3g} of its norm"
        )
    if found.parting is not None:
        parts = ", ".join(found.parting.parts)
        print(
            f"ledger      {found.same_entries} entries are the same; from "
            f"{found.parting.nimg / 1000:g} kimg on, {parts} differ"
        )
    print(
        "why         most likely what `differs` (above): sums are rounded otherwise there"
        if otherwise
        else f"why         nothing known differs here: see gan-train verify {version.run}"
    )
    return _DIFFERS


def _line(place: str, count: str, result: str) -> str:
    return f"{place.ljust(20)} {count.rjust(7)}  {result}"
