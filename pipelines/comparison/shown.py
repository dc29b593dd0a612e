"""The pictures of two versions on the page of `gan-train diff`: both draw the same latents, or are
given the same pictures, which stand beside what they made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gan_train import recipes
from gan_train.adversary import DOMAINS, Domain, Task, Upscales
from gan_train.config import Config
from gan_train.data.finished import finished_set
from gan_train.data.images import open_picture
from gan_train.data.index import Index
from gan_train.data.pictures import TestPictures
from gan_train.images.grid import make_grid
from gan_train.images.pixels import to_picture
from gan_train.images.resize import bicubic_downsample
from gan_train.inference import Generator
from gan_train.metrics.real import read_places
from gan_train.tasks.translation import HELD_OUT, other_than
from pipelines.comparison.facts import Picture
from pipelines.comparison.gather import embedded
from pipelines.registry.dossier import Dossier

_SIDE = 512
"""The most pixels across of either version's samples."""
_COLUMN = 256
"""The most pixels across where inputs stand beside what was made of them."""
_TILE = 128
"""The side of what is shown of a larger picture."""
_MOST_PIXELS = 4_000_000


@dataclass(frozen=True)
class Column:
    """A picture and what stands below it; no picture where there is none."""

    title: str
    picture: Picture | None


@dataclass(frozen=True)
class Row:
    """Columns that show the same in the same places. The heading may be empty."""

    heading: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Shown:
    """Rows of pictures, and what they show, in words."""

    rows: tuple[Row, ...]
    words: str


@dataclass(frozen=True)
class Version:
    """A version, its generator, and what it is called on the page."""

    dossier: Dossier
    generator: Generator
    title: str


def shown(both: tuple[Version, Version], config: Config) -> Shown:
    """The pictures of two versions. `config` says in which workspace the data may lie, and which
    pictures are upscaled instead of them (`evaluate.pictures`).

    Raises UserError where pictures cannot be read.
    """
    tasks = {version.generator.task for version in both}
    if tasks == {"generate"}:
        return _samples(both)
    found = None
    if tasks == {"upscale"}:
        found = _upscaled(both, config)
    elif tasks == {"translate"}:
        found = _translated(both, config)
    return found or _grids(both, tasks)


def _samples(both: Sequence[Version]) -> Shown:
    """The same latents, and the same classes where both have them, drawn by both."""
    left, right = (version.generator for version in both)
    shared = [c for c in left.shape.classes if c in right.shape.classes]
    conditional = left.conditional and right.conditional
    side = max(left.shape.resolution, right.shape.resolution)
    columns = max(2, min(8, _SIDE // side))
    count = columns * columns
    made = []
    for version in both:
        generator = version.generator
        classes = generator.shape.classes
        chosen = shared if conditional and shared else list(classes)
        label = torch.tensor([classes.index(chosen[i % len(chosen)]) for i in range(count)])
        images = generator.images(
            generator.latents(range(count)), label if generator.conditional else None
        )
        picture = embedded(make_grid(images, columns), f"{count} samples of {version.title}")
        made.append(Column(version.title, picture))
    what = ", a class after the other" if conditional else ""
    words = f"Seeds 0 to {count - 1} in both columns{what}, not truncated."
    return Shown((Row("", tuple(made)),), words)


# ---- pictures made of pictures -------------------------------------------------------------------


def _upscaled(both: Sequence[Version], config: Config) -> Shown | None:
    """Pictures that are downsampled, upscaled by both, and shown beside the originals."""
    scales = []
    for version in both:
        assert isinstance(version.generator.adversary, Upscales)
        scales.append(version.generator.adversary.scale)
    largest = max(scales)  # of which the others are divisors
    given = _pictures(both, config, largest)
    if given is None:
        return None
    pairs, of = given
    side = min(_TILE, *(side for high, _ in pairs for side in high.shape[1:]))
    inputs = {
        scale: [low if scale == largest else bicubic_downsample(high, scale) for high, low in pairs]
        for scale in dict.fromkeys(scales)
    }
    columns = [
        _column(f"Input, 1/{scale} of each side", [_enlarged(low, scale) for low in lows], side)
        for scale, lows in inputs.items()
    ]
    for version, scale in zip(both, scales, strict=True):
        made = [version.generator.converted(low) for low in inputs[scale]]
        columns.append(_column(version.title, made, side))
    columns.append(_column("Original", [high for high, _ in pairs], side))
    words = (
        f"{of}, in the same places of all columns: the middle {side} pixels. "
        "The pixels of the inputs are enlarged."
    )
    return Shown((Row("", tuple(columns)),), words)


def _pictures(
    both: Sequence[Version], config: Config, scale: int
) -> tuple[list[tuple[Tensor, Tensor]], str] | None:
    """Originals uint8 [C, scale h, scale w] with inputs uint8 [C, h, w], and what they are, in
    words. The configuration names them, or they are those of a data set; None without any."""
    channels = {version.generator.shape.channels for version in both}
    if len(channels) > 1:
        return None
    count = _count(_TILE)
    if config.evaluate.pictures is not None:
        colour = "grey" if channels == {1} else "rgb"
        named = TestPictures(recipes.change(config, {"data.colour": colour}), scale)
        chosen = [named[place] for place in range(min(count, len(named)))]
        pairs = [(picture.high, picture.low) for picture in chosen]
        return pairs, f"{len(pairs)} of the pictures in {config.evaluate.pictures}"
    for index, directory, title in _data_sets(both, config):
        if index.resolution % scale:
            continue
        images, use = _read(index, directory, "A")
        pairs = [(image, bicubic_downsample(image, scale)) for image in images]
        return pairs, f"{len(pairs)} pictures that the data of {title} {use}"
    return None


def _translated(both: Sequence[Version], config: Config) -> Shown | None:
    """Pictures of either domain, translated to the other one by both."""
    for index, directory, title in _data_sets(both, config):
        rows, use = [], ""
        for source in DOMAINS:
            to = other_than(source)
            images, use = _read(index, directory, source)
            columns = [_column(f"Input, of {source}", list(images), index.resolution)]
            for version in both:
                made = [version.generator.converted(image, to) for image in images]
                columns.append(_column(version.title, made, index.resolution))
            rows.append(Row(f"From {source} to {to}", tuple(columns)))
        words = f"Pictures of each domain that the data of {title} {use}"
        return Shown(tuple(rows), f"{words}, in the same places of all columns.")
    return None


def _data_sets(both: Sequence[Version], config: Config) -> Iterator[tuple[Index, Path, str]]:
    """The data sets of the versions that lie in the workspace and suit both generators, that of the
    newer version first, each with that version's title."""
    order = sorted(both, key=lambda v: (v.dossier.registered_ms, v.dossier.number), reverse=True)
    for version in order:
        directory = finished_set(config, version.dossier.data_hash)
        if directory is None:
            continue
        index = Index.load(directory)
        if all(version.generator.shape.channels == index.channels for version in both):
            yield index, directory, version.title


def _read(index: Index, directory: Path, domain: Domain) -> tuple[Tensor, str]:
    """The first images uint8 [n, C, R, R] of a domain, held out where there are such, and what the
    data do with them, in words."""
    held_out, trained = index.part(HELD_OUT[domain]), index.part(domain)
    part = held_out or trained
    assert part is not None, "a data set of this task has both domains"
    places = torch.arange(min(_count(index.resolution), part.samples))
    images = read_places(part, directory, places)[0]
    return images, "hold out from training" if held_out else "hold for training"


def _count(side: int) -> int:
    """How many pictures of this side are shown."""
    return 4 * _across(side)


def _across(side: int) -> int:
    return max(1, min(4, _COLUMN // side))


def _column(title: str, images: Sequence[Tensor], side: int) -> Column:
    """The middles of images uint8 [C, h, w], as squares of `side` pixels."""
    cut = torch.stack([_middle(image, side) for image in images])
    sheet = make_grid(cut, _across(side))
    return Column(title, embedded(sheet, f"{len(images)} pictures: {title}"))


def _middle(image: Tensor, side: int) -> Tensor:
    top, left = ((whole - side) // 2 for whole in image.shape[1:])
    return image[:, top : top + side, left : left + side]


def _enlarged(image: Tensor, scale: int) -> Tensor:
    return image.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2)


# ---- grids of the runs ---------------------------------------------------------------------------


def _grids(both: Sequence[Version], tasks: set[Task]) -> Shown:
    """The grids that the runs drew themselves, where there is nothing that both could be given."""
    columns = []
    for version in both:
        grid = version.dossier.grid
        pixels = None if grid is None else open_picture(grid, 3, max_pixels=_MOST_PIXELS)
        text = f"Samples of {version.title}"
        picture = None if pixels is None else embedded(to_picture(pixels), text)
        columns.append(Column(version.title, picture))
    words = "The newest grid that each run has drawn, of its own data."
    if len(tasks) == 1:
        words += (
            " Both would be shown the same pictures if the data of one of them, with as many "
            "channels as both take, were in the workspace"
        )
        words += ", or with --set evaluate.pictures=FOLDER." if "upscale" in tasks else "."
    return Shown((Row("", tuple(columns)),), words)
