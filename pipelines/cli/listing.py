"""`gan-train recipes`, `runs`, `page` and `versions`: what can be trained, resumed and used.

This file reads arguments and lays out tables; what stands in them is asked of other rooms.
"""

from __future__ import annotations

import argparse
import logging
import re
import shutil
import textwrap
from datetime import datetime
from pathlib import Path
from typing import Any

from pipelines.cli.arguments import add_command, add_overrides

log = logging.getLogger(__name__)

_WORKSPACE = Path("runs")


def add(commands: Any) -> None:
    """Add the listing commands to a parser's list."""
    recipes = add_command(
        commands,
        "recipes",
        _recipes,
        "list the recipes that have a bare name, and what each trains",
        "Those in ./configs come before the project's own of the same name.\n"
        "All settings of one: gan-train config RECIPE. Its cost: gan-train run RECIPE --dry-run",
    )
    recipes.add_argument(
        "family", nargs="?", help="only recipes of this family, such as progan, with all they say"
    )

    runs = add_command(
        commands,
        "runs",
        _runs,
        "list the runs of a workspace, the newest first",
        "  gan-train runs                    all runs in runs/\n"
        "  gan-train runs demo               those of one recipe\n\n"
        "Go on with one that was stopped or interrupted: gan-train run RECIPE --resume RUN",
    )
    runs.add_argument("recipe", nargs="?", help="only runs of the recipe with this name")
    runs.add_argument(
        "--workspace",
        default=str(_WORKSPACE),
        metavar="PLACE",
        help="a folder, or an address in a bucket (s3://bucket/team); default: %(default)s",
    )

    page = add_command(
        commands,
        "page",
        _page,
        "write the page of a run: diagnosis, scores, samples and curves in one file",
        "Training writes it at each checkpoint; this writes it anew, also for older runs.\n"
        "It stands alone, and may be mailed or kept.",
    )
    page.add_argument("run", help="the name of a run, or its folder")
    page.add_argument(
        "--workspace",
        default=str(_WORKSPACE),
        metavar="PLACE",
        help="where the run is, if its name is given; default: %(default)s",
    )

    versions = add_command(
        commands,
        "versions",
        _versions,
        "list the registered versions of a recipe's model, the newest first",
        "Use one:              gan-train generate RECIPE --version 3 --out grid.png\n"
        "Choose the champion:  gan-train promote RECIPE --version 3",
    )
    versions.add_argument("recipe", help="a YAML file, or the name of one in configs/")
    versions.add_argument(
        "--champions",
        action="store_true",
        help="list instead who was champion from when to when, and why",
    )
    add_overrides(versions)


def _recipes(given: argparse.Namespace) -> int:
    from gan_train import recipes
    from gan_train.errors import UserError

    found = [(path, recipes.load(str(path))) for path in recipes.known()]
    families = sorted({config.family.name for _, config in found})
    if given.family is not None and given.family not in families:
        raise UserError(
            f"{given.family}: no recipe of such a family; there are {', '.join(families)}"
        )
    width = max(len(config.name) for _, config in found)
    columns = shutil.get_terminal_size((100, 24)).columns
    for path, config in found:
        if given.family in (None, config.family.name):
            about = recipes.about(path)
            if given.family is None:  # the first sentence says what it is
                about = re.split(r"(?<!et al\.)(?<=\.) (?=[A-Z])", about)[0]
            shape = f"{config.data.resolution} px, {config.data.colour}"
            print(f"{config.name.ljust(width)}  {config.family.name}, {shape}")
            print(textwrap.indent(textwrap.fill(about, columns - 5), "    "))
    return 0


def _runs(given: argparse.Namespace) -> int:
    from gan_train.errors import UserError
    from gan_train.runs import run_folder
    from pipelines.flows.progress import aligned
    from pipelines.registry.promotion import best_checkpoint, event_standing

    rows = []
    for run_dir in run_folder.all_runs(given.workspace):
        try:
            config = run_folder.configuration(run_dir)
        except UserError as error:  # of an earlier version, say; the other runs are listed
            log.warning("%s is left out: %s", run_dir.name, error)
            continue
        if given.recipe not in (None, config.name):
            continue
        events = run_folder.read_events(run_dir)
        best = best_checkpoint(events)
        standing = event_standing(best) if best else None
        rows.append(
            [
                run_dir.name,
                config.family.name,
                _state(run_dir),
                f"{max((event['nimg'] for event in events), default=0) / 1000:.4g}",
                standing.text if standing else "-",
                f"{best['nimg'] / 1000:.4g}" if best else "-",
                standing.metric if standing else "-",
            ]
        )
    if not rows:
        of = "" if given.recipe is None else f" of {given.recipe}"
        raise UserError(
            f"no run{of} in {given.workspace}; start one with `gan-train run`, or name another "
            "folder with --workspace"
        )
    head = ["run", "family", "state", "kimg", "best score", "at kimg", "measure"]
    print(aligned([head, *rows]))
    return 0


def _page(given: argparse.Namespace) -> int:
    from gan_train.diagnosis import page
    from gan_train.errors import UserError
    from gan_train.runs import run_folder

    folder = Path(given.run).absolute()
    runs = run_folder.all_runs(given.workspace)
    found = [run_dir for run_dir in runs if run_dir.name == given.run]
    if not found and not (folder / run_folder.CONFIG).is_file():
        names = ", ".join(run_dir.name for run_dir in runs[:10]) or "none yet"
        raise UserError(
            f"{given.run}: no such run in {given.workspace}; allowed: {names}, or the folder of a "
            "run"
        )
    run_dir = found[0] if found else folder
    patience = run_folder.configuration(run_dir).train.patience_kimg
    print(page.write(run_dir, patience).absolute())
    return 0


def _state(run_dir: Path) -> str:
    """A run is being trained or scored (`training`); or it is finished, was stopped by someone,
    failed, or was interrupted: its log ends without a word."""
    from gan_train.runs import run_folder
    from pipelines.registry.shipping import ended

    if run_folder.is_trained_now(run_dir):
        return "training"
    end = ended(run_dir)
    words = {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}
    return words[end[0]] if end else "interrupted"


def _versions(given: argparse.Namespace) -> int:
    from gan_train import recipes
    from gan_train.errors import UserError
    from pipelines.cli.loading import ready
    from pipelines.flows.progress import aligned
    from pipelines.registry import listed

    config = ready(recipes.load(given.recipe, given.overrides))
    found = listed.versions(config)
    if not found:
        raise UserError(
            f"{listed.place(config)} has no version yet; one is registered by "
            f"`gan-train run {given.recipe}`"
        )
    if given.champions:
        reigns = listed.champions(config)
        times = [
            [str(reign.version), _minute(reign.since), _minute(end) if end else "now"]
            for reign, end in reigns
        ]
        lines = aligned([["version", "from", "to"], *times]).splitlines()
        for line, why in zip(lines, ["why", *(reign.reason for reign, _ in reigns)], strict=True):
            print(f"{line}  {why}")
        return 0
    rows = [
        [
            str(version.number),
            version.alias or "-",
            version.text if version.measure else "-",
            version.seeds,
            version.measure or "-",
            f"{version.images_seen / 1000:.4g}",
            version.run or "-",
            f"{version.registered:%Y-%m-%d %H:%M}",
        ]
        for version in found
    ]
    head = ["version", "alias", "score", "seeds", "measure", "kimg", "run", "registered"]
    print(aligned([head, *rows]))
    return 0


def _minute(when: str) -> str:
    """A time in ISO 8601, by the clock of this place."""
    return f"{datetime.fromisoformat(when).astimezone():%Y-%m-%d %H:%M}"
