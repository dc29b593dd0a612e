"""`gan-train whence`: which model drew a picture, and with what; it is drawn again to compare.

This file reads arguments and lays out text; the work is done in `gan_train.sampling.whence`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.arguments import add_command, add_overrides
from pipelines.cli.sampling import folder_of

if TYPE_CHECKING:
    from gan_train.images.origin import Origin

NOT_SHOWN = 1
"""The exit status where the picture was not drawn again, or differs."""
_LABELS = {
    "seeds": "seeds",
    "others": "columns of",
    "layers": "layers",
    "classes": "class",
    "truncation": "truncation",
    "cutoff": "cutoff",
    "noise": "noise",
    "frame": "frame",
    "to": "domain",
    "source_sha256": "made of",
    "styles_sha256": "styles",
    "images_seen": "at images",
}


def add(commands: Any) -> None:
    """Add the command to a parser's list."""
    parser = add_command(
        commands,
        "whence",
        _whence,
        "say which model drew a picture and with what, and draw it again to compare",
        "  gan-train whence grid.png\n"
        "  gan-train whence a.png --set registry.tracking_uri=http://host:5000\n"
        "  gan-train whence a.png --model runs/train/.../checkpoints/000000108000\n\n"
        "PNG files that gan-train writes carry this in their metadata. The exit status is 0 where\n"
        "the picture was drawn again and is the same, else 1; with --read-only it is 0.\n\n"
        "Pictures are signed, too (C2PA), where the package c2pa-python is installed, and\n"
        "GAN_TRAIN_C2PA_CERTIFICATES and GAN_TRAIN_C2PA_KEY name PEM files (an ES256 key).",
    )
    parser.add_argument("picture", type=Path, help="a PNG file")
    parser.add_argument("--model", help="where its generator is; default: where the picture says")
    parser.add_argument("--read-only", action="store_true", help="do not draw it again")
    add_overrides(parser)


def _whence(given: argparse.Namespace) -> int:
    from gan_train.images import origin
    from gan_train.images.credentials import told
    from gan_train.text import line

    data = origin.read_file(given.picture)
    found = origin.read(data, str(given.picture))
    rows = [("model", found.model), ("run", found.run), ("checkpoint", found.checkpoint)]
    rows.append(("weights", found.weights_sha256))
    rows.append(("made by", f"gan-train {found.gan_train}, {found.command}"))
    for name, label in _LABELS.items():
        value = getattr(found, name)
        shown = ", ".join(value) if isinstance(value, list) else value
        rows.append((label, None if shown is None else f"{shown}"))
    rows.append(("credentials", told(data)))
    for label, shown in rows:
        if shown is not None:
            text = line(shown)
            print(f"{label:11} {text if len(text) <= 300 else text[:300] + '…'}")
    if given.read_only:
        return 0
    said, same = _again(given, data, found)
    print(f"drawn again {line(said)}")
    return 0 if same else NOT_SHOWN


def _again(given: argparse.Namespace, data: bytes, found: Origin) -> tuple[str, bool]:
    """How the picture compares, in words, and whether it is the same."""
    from gan_train.errors import UserError
    from gan_train.inference import Generator
    from gan_train.sampling import whence

    try:
        model = given.model or found.model or _checkpoint(given, found)
        named = argparse.Namespace(model=model, version=None, overrides=given.overrides)
        if given.model is None and found.model is None:
            named.overrides = []
        apart = whence.difference(Generator.load(folder_of(named)), data, found)
    except UserError as error:
        return f"no: {error}", False
    return whence.in_words(apart), apart is not None and apart <= whence.ROUNDING


def _checkpoint(given: argparse.Namespace, found: Origin) -> str:
    """The folder of the checkpoint that the picture names, in the workspace. Raises UserError where
    it names none."""
    from gan_train import recipes
    from gan_train.errors import UserError
    from gan_train.runs import run_folder

    names = (found.run or "", found.checkpoint or "")
    if not all(re.fullmatch(r"\w[\w.-]*", name) for name in names):  # a name, and no path
        raise UserError("it does not say where its generator is; name it with --model")
    config = recipes.load(str(recipes.SHIPPED / "demo.yaml"), given.overrides)
    folder = run_folder.folder(recipes.with_absolute_paths(config))
    return str(folder / names[0] / "checkpoints" / names[1])
