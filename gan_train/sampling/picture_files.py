"""Picture files in, picture files out: what the commands that change pictures share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gan_train.errors import UserError


def targets_of(
    files: Sequence[Path], folder: Path, ending: str, *, force: bool
) -> dict[Path, Path]:
    """The file that each picture becomes: its name without suffix, and `ending`, in `folder`.

    Nothing is opened or written. Raises UserError where no file is named, for one that is missing
    or a folder, for two that would become one, and, without `force`, for results that exist.
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
