"""`gan-train upscale` and `translate`: make new picture files from a user's.

This file reads arguments; the work is done in `gan_train.sampling`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipelines.cli.arguments import add_command, add_overrides
from pipelines.cli.sampling import add_model, folder_of


def add(commands: Any) -> None:
    """Add the commands to a parser's list."""
    upscale = add_command(
        commands,
        "upscale",
        _upscale,
        "upscale pictures of any size (super-resolution)",
        "  gan-train upscale holiday/*.jpg --model srgan-photos-x4 --out large/\n"
        "  gan-train upscale face.png --model runs/train/.../checkpoints/000000040000\n\n"
        "a.jpg becomes a-x4.png. Large pictures are upscaled in overlapping tiles, without seams.",
    )
    _pictures(upscale, "upscaled")
    upscale.add_argument(
        "--tile", type=int, default=192, help="pixels squared at once; default: %(default)s"
    )
    add_overrides(upscale)

    translate = add_command(
        commands,
        "translate",
        _translate,
        "turn pictures of one domain into pictures of the other",
        "  gan-train translate field.jpg --to B --model cyclegan-horse2zebra-128\n"
        "  gan-train translate icons/*.png --to A --model cyclegan-emoji-32 --side 32\n\n"
        "a.jpg becomes a-to-B.png. B is the recipe's `data.second`, A its `data.source`.",
    )
    _pictures(translate, "translated")
    translate.add_argument("--to", choices=("A", "B"), required=True, help="the domain to make")
    translate.add_argument(
        "--side", type=int, help="scale the shorter side to so many pixels first; default: as it is"
    )
    add_overrides(translate)


def _pictures(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="picture files")
    add_model(parser, "--model")
    parser.add_argument("--out", type=Path, default=Path(out), help=f"a folder; default: {out}")
    parser.add_argument("--force", action="store_true", help="write over what is there")


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _upscale(given: argparse.Namespace) -> int:
    folder = folder_of(given)
    from gan_train.sampling.upscale import upscale_files

    for path in upscale_files(
        folder, given.files, given.out, force=given.force, tile=given.tile, device=_device()
    ):
        print(path)
    return 0


def _translate(given: argparse.Namespace) -> int:
    folder = folder_of(given)
    from gan_train.sampling.translate import translate_files

    for path in translate_files(
        folder,
        given.files,
        given.to,
        given.out,
        force=given.force,
        side=given.side,
        device=_device(),
    ):
        print(path)
    return 0
