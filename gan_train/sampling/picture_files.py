"""Names the output files of the commands that turn picture files into others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gan_train.errors import UserError


def targets_of(
    files: Sequence[Path], folder: Path, ending: str, *, force: bool
) -> dict[Path, Path]:
    """The output file of each picture, in `folder`: its name without suffix, followed by `ending`.

    No file is opened or written. Raises UserError when `files` is empty, when one is missing or a
    folder, when two would have the same output file, and, without `force`, when an output file
    exists.
    """
    if not files:
        raise UserError("no pictures were named: give one or more picture files")
    sources: dict[Path, Path] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file; give picture files, not folders")
        target = folder / f"{file.stem}{ending}"
        if target in sources:
            raise UserError(
                f"{sources[target]} and {file} would both become {target}: rename one, or write "
                "them into different folders"
            )
        if target.exists() and not force:
            raise UserError(f"{target} exists; use --force to replace it, or another folder")
        sources[target] = file
    return {file: target for target, file in sources.items()}
