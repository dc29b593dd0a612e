"""`gan-train diff`: two registered versions side by side.

This file reads arguments; the work is done in `pipelines.comparison.pair`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.arguments import add_command, add_overrides
from pipelines.cli.sampling import registered_model

if TYPE_CHECKING:
    from gan_train.config import Config

PAGE = Path("diff.html")


def add(commands: Any) -> None:
    """Add the command to a parser's list."""
    parser = add_command(
        commands,
        "diff",
        _diff,
        "show what differs between two registered versions",
        "  gan-train diff models:/progan-demo/3 models:/progan-demo/7 --out diff.html\n"
        "  gan-train diff models:/progan-demo/3 models:/progan-demo@champion\n\n"
        "The page shows both on the same latents, their scores, and what differs in settings,\n"
        "data, code and cost. Versions that upscale or translate are shown on the same pictures,\n"
        "of data in the workspace, or, to upscale, of --set evaluate.pictures=FOLDER. The page\n"
        "stands alone, and also lies beside the newer version in MLflow.",
    )
    parser.add_argument("left", help="models:/NAME/VERSION or models:/NAME@ALIAS")
    parser.add_argument("right", help="the same, of the other version")
    parser.add_argument(
        "--out", type=Path, default=PAGE, metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument(
        "--no-artifact", action="store_true", help="write nothing into the registry"
    )
    add_overrides(parser)


def _diff(given: argparse.Namespace) -> int:
    show(given.left, given.right, given.overrides, given.out, attach=not given.no_artifact)
    return 0


def show(left: str, right: str, overrides: list[str], out: Path, *, attach: bool) -> None:
    """Write the page of two versions, and print its answer. Raises UserError for what is no
    version, and where the two are one."""
    from gan_train.errors import UserError

    if out.suffix != ".html":
        raise UserError(f"--out {out}: this is a page, name a file ending in .html")
    named = [_registered(model, overrides) for model in (left, right)]
    from gan_train.files.atomic import write_aside
    from pipelines.comparison import pair
    from pipelines.registry import dossier

    both = [dossier.dossier(config, version) for config, version in named]
    if both[0].address == both[1].address:
        raise UserError(f"{left} and {right} are both {both[0].address}: name another version")
    found = pair.pair(both[0], both[1], named[0][0])
    page = pair.page(found)
    write_aside(out, page.encode())
    print(pair.text(found))
    print(f"\npage        {out}")
    if attach:
        newer = max((0, 1), key=lambda place: (both[place].registered_ms, both[place].number))
        other = both[1 - newer]
        same = other.model == both[newer].model
        name = f"version-{other.number}.html" if same else f"{other.model}-{other.number}.html"
        where = dossier.attach(named[newer][0], both[newer].number, name, page)
        print(f"artifact    {where}, of {both[newer].address}")


def _registered(model: str, overrides: list[str]) -> tuple[Config, str]:
    from gan_train.errors import UserError

    if not model.startswith("models:"):
        raise UserError(f"{model}: allowed: models:/NAME/VERSION or models:/NAME@ALIAS")
    named = registered_model(argparse.Namespace(model=model, version=None, overrides=overrides))
    assert named is not None, "an address is no folder"
    return named
