"""Where a picture comes from: a JSON object in a text chunk of the PNG files that are written here.

It says which model, and with what: seeds, class, truncation. No addresses of servers and no paths
are in it, because pictures travel. What is read may come from anyone: it is bounded, checked, and
shown as untrusted text.
"""

from __future__ import annotations

import io
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gan_train.errors import UserError
from gan_train.images.credentials import signed

KEY = "gan-train"
"""The keyword of the text chunk."""
MOST_BYTES = 256 << 20
MOST_CHARACTERS = 200_000

Command = Literal["generate", "mix", "interpolate", "project", "upscale", "translate", "samples"]
FROM_PICTURES: tuple[Command, ...] = ("project", "upscale", "translate")
"""The commands that make pictures of pictures."""
Name: TypeAlias = Annotated[str, Field(max_length=500)]
"""Names are untrusted: they may hold anything."""
Digest: TypeAlias = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Numbers: TypeAlias = Annotated[str, Field(max_length=MOST_CHARACTERS)]
"""Seeds, as `gan_train/sampling/seeds.py` reads them."""
Small: TypeAlias = Annotated[int, Field(ge=0, le=1_000_000)]


class Identity(BaseModel):
    """Which generator: a version in a registry, or a checkpoint of a run."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    model: Name | None = None
    """The version's address, such as `models:/progan-demo/3`."""
    run: Name | None = None
    """The name of the run that trained it."""
    checkpoint: Name | None = None
    weights_sha256: Digest | None = None


class Origin(Identity):
    """Which generator made a picture, and with what. Each command fills in what it has."""

    format: Literal[1] = 1
    gan_train: Name = ""
    """The version of the program."""
    command: Command
    seeds: Numbers | None = None
    """Of a mixture: those of its rows. Of an interpolation: those that it passes."""
    others: Numbers | None = None
    """Of a mixture: the seeds of its columns."""
    layers: Name | None = None
    classes: list[Name] | None = Field(None, max_length=1000)
    """The class; of an interpolation, one or more. None: without classes, or all in turn."""
    truncation: float | None = Field(None, ge=-2, le=2)
    cutoff: Small | None = None
    noise: Literal["const", "none", "random"] | None = None
    columns: Small | None = None
    """Of a grid."""
    frame: int | None = Field(None, ge=0, le=100_000_000)
    frames: Small | None = None
    space: Literal["z", "w"] | None = None
    loop: bool | None = None
    to: Literal["A", "B"] | None = None
    source_sha256: Digest | None = None
    """Of the picture file that this picture was made of."""
    styles_sha256: Digest | None = None
    """Of the file of styles that stood in place of seeds."""
    images_seen: int | None = Field(None, ge=0)
    """How far training had come, of the grids that are drawn on the way."""


def library() -> str:
    """The version of this program; empty where it is not installed, as in a served model, which
    holds a copy of the code."""
    try:
        return version("gan-train")
    except PackageNotFoundError:
        return ""


def chunk(origin: Origin) -> PngInfo:
    """The chunk for Pillow's `save(..., pnginfo=)`."""
    info = PngInfo()
    text = json.dumps(origin.model_dump(exclude_none=True), separators=(",", ":"))  # ASCII
    info.add_text(KEY, text)
    return info


def encoded(picture: Image.Image, origin: Origin, icc_profile: bytes | None = None) -> bytes:
    """A PNG file that says where it comes from, and is signed where a signer is named (see
    `credentials.py`). Raises UserError where it cannot be signed."""
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=chunk(origin), icc_profile=icc_profile)
    if origin.command == "samples":  # drawn on the way, for those who train
        return file.getvalue()
    from_picture = origin.command in FROM_PICTURES
    return signed(file.getvalue(), origin.model_dump(exclude_none=True), from_picture)


def kept(picture: Image.Image) -> PngInfo | None:
    """The chunk of an opened picture, for a smaller copy of it; None if it has none."""
    text = picture.info.get(KEY)
    if not isinstance(text, str):
        return None
    info = PngInfo()
    info.add_text(KEY, text)
    return info


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises UserError where it cannot be read or is larger than
    `MOST_BYTES`."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} has more than {MOST_BYTES >> 20} MiB: give a smaller picture")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def read(data: bytes, name: str) -> Origin:
    """What a PNG file says of its origin; `name` is the file's, for messages.

    Raises UserError for a file that is no PNG, says nothing, or says what this version of the
    program cannot read.
    """
    try:
        # only chunks before the pixels count, and Pillow bounds what it inflates
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            text = picture.info.get(KEY)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{name} is no PNG file that can be read: {error}") from error
    if not isinstance(text, str):
        raise UserError(
            f"{name} does not say where it comes from: gan-train writes that into its PNG files, "
            "and other programs remove it when they save them again"
        )
    try:
        return Origin.model_validate_json(text[: 2 * MOST_CHARACTERS])
    except ValidationError as problems:
        first = problems.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the text"
        raise UserError(
            f"what {name} says of its origin cannot be read ({place}: {first['msg']}): it was "
            "changed, or written by another version of gan-train"
        ) from None
