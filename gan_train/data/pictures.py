"""The pictures on which super-resolution is scored, with their low-resolution partners.

A source may hold both of a pair, as it was published, or a picture alone, which is downsampled
bicubically here:

    Set5/HR/img_001_SRF_4_HR.png   and   Set5/LRx4/img_001_SRF_4_LR.png
    test/Dune.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from torch import Tensor

from gan_train.config import Config, EvaluateConfig
from gan_train.data.images import BadImage, open_picture
from gan_train.data.sources import (
    Source,
    SourceFile,
    list_source,
    local_place,
    open_source,
    trusted_since,
)
from gan_train.errors import UserError
from gan_train.images.resize import bicubic_downsample

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


@dataclass(frozen=True)
class TestPicture:
    """A picture `high` uint8 [C, scale h, scale w], and `low` uint8 [C, h, w], from which a network
    should restore it. `set` is the folder whose pictures are scored together."""

    __test__ = False  # pytest takes classes named Test... for tests

    set: str
    name: str
    high: Tensor
    low: Tensor


class TestPictures:
    """The test pictures of a source, which are read one at a time."""

    __test__ = False

    def __init__(self, config: Config, scale: int) -> None:
        """List the source. Raises UserError when it lacks the pictures asked for."""
        evaluate = config.evaluate
        assert evaluate.pictures is not None
        since = trusted_since(config.data.verify_days)
        self._path, listed_files = list_source(
            local_place(evaluate.pictures), config.workspace, since
        )
        self._channels, self._scale = 1 if config.data.colour == "grey" else 3, scale
        files = {file.path: file for file in listed_files if file.path.lower().endswith(_ENDINGS)}
        folder = f"LRx{scale}"
        small = {_key(path): file for path, file in files.items() if _parent(path) == folder}
        listed = [
            (_set(path), file, small.get(_key(path)))
            for path, file in sorted(files.items())
            if not _parent(path).startswith("LR")
        ]
        self._check(evaluate, {name for name, _, _ in listed})
        wanted = set(evaluate.picture_sets)
        self._listed = [entry for entry in listed if not wanted or entry[0] in wanted]

    def _check(self, evaluate: EvaluateConfig, known: set[str]) -> None:
        if unknown := sorted(set(evaluate.picture_sets) - known):
            raise UserError(
                f"evaluate.picture_sets names {', '.join(unknown)}, which {evaluate.pictures} has "
                f"not; it has {', '.join(sorted(known)) or 'no pictures'}"
            )
        if not known:
            raise UserError(f"evaluate.pictures: {evaluate.pictures} holds no pictures")

    def __len__(self) -> int:
        return len(self._listed)

    @property
    def sets(self) -> list[str]:
        """The names of the folders, each of which is scored by itself."""
        return sorted({name for name, _, _ in self._listed})

    @property
    def identity(self) -> str:
        """The names and checksums of all files, in one text. The scores depend on these files."""
        return ";".join(
            f"{name}/{file.path}:{file.crc}:{small.crc if small else ''}"
            for name, file, small in self._listed
        )

    def __getitem__(self, place: int) -> TestPicture:
        name, file, small = self._listed[place]
        source = open_source(self._path)
        high, scale = self._read(source, file), self._scale
        height, width = (side - side % scale for side in high.shape[1:])
        high = high[:, :height, :width]
        low = bicubic_downsample(high, scale) if small is None else self._read(source, small)
        if low.shape[1:] != (height // scale, width // scale):
            raise UserError(
                f"evaluate.pictures: {file.path} is {width}x{height}, but its partner "
                f"{low.shape[2]}x{low.shape[1]}, which is not 1/{scale} of it"
            )
        return TestPicture(name, PurePosixPath(file.path).stem, high, low)

    def _read(self, source: Source, file: SourceFile) -> Tensor:
        """The picture as uint8 [C, H, W], upright and opaque, grey or RGB as in training."""
        try:
            return open_picture(source.read(file), self._channels)
        except BadImage as error:
            raise UserError(f"evaluate.pictures: {file.path} is no picture: {error}") from error


def _parent(path: str) -> str:
    return PurePosixPath(path).parent.name


def _set(path: str) -> str:
    """The name of a picture's folder; if that is `HR`, the name of the folder above it."""
    parent = PurePosixPath(path).parent
    return (parent.parent if parent.name == "HR" else parent).name or "pictures"


def _key(path: str) -> tuple[str, str]:
    """The part of the path that a picture and its small partner have in common."""
    file = PurePosixPath(path)
    stem = file.stem.removesuffix("_HR").removesuffix("_LR")
    return str(file.parent.parent), stem
