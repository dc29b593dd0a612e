"""Decides which files of the sources are stored, with which class, and in which part of the data.

Training uses the parts A and B (see `index.Part`); B comes from the second source of a translation.
It never uses `A_held_out` and `B_held_out`, on which a generator is scored. All functions are pure:
they decide by the configuration and the lists of files alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from gan_train.config import DataConfig
from gan_train.data.index import Part
from gan_train.data.order import permutation
from gan_train.data.sources import SourceFile
from gan_train.errors import UserError

FORMAT = 1
"""A version. Increase it with any change that gives other shards for the same configuration."""
_IMAGE_NAME = re.compile(r"\.(png|jpe?g|webp|bmp|gif|tiff?|p[bgpn]m|jp2|avif)$", re.IGNORECASE)


class BadFile(NamedTuple):
    """A file that is not stored, as a line of the quarantine report."""

    path: str
    reason: str


class Chosen(NamedTuple):
    """A file to store, and the name of its class; None for unlabelled data."""

    file: SourceFile
    label: str | None


def choose(
    files: Sequence[SourceFile], source: str, classes: str, only_classes: Sequence[str]
) -> tuple[list[Chosen], list[BadFile]]:
    """The files to store, and those that are rejected.

    With `classes` "folder" the class of an image is the name of its folder, and an image outside
    of the class folders is rejected. Raises UserError for a source without images, without class
    folders where they are needed, or without one of the classes in `only_classes`.
    """
    images, rejected = [], []
    for file in files:
        if not _is_text(file.path):
            shown = file.path.encode(errors="surrogateescape").decode(errors="backslashreplace")
            rejected.append(BadFile(shown, "its name is not UTF-8"))
        elif _IMAGE_NAME.search(file.path):
            images.append(file)
        else:
            rejected.append(BadFile(file.path, "not an image by its name"))
    if not images:
        raise UserError(
            f"data.source: {source} holds no images (files named .png, .jpg, .jpeg, .webp, "
            ".bmp, .gif, .tif, .tiff, .pbm, .pgm, .ppm, .pnm, .jp2 or .avif)"
        )
    if classes == "none" and not only_classes:
        return [Chosen(file, None) for file in images], rejected

    # A folder that holds all others (the top folder of most archives) is no class.
    parents = {file.path: file.path.rpartition("/")[0] for file in images}
    folders = {parent: PurePosixPath(parent) for parent in set(parents.values())}
    common = _common(folders.values()) if len(folders) > 1 else PurePosixPath(".")
    classes_of = {parent: path.name for parent, path in folders.items() if path != common}
    names = {path: classes_of[parent] for path, parent in parents.items() if parent in classes_of}
    if not names:
        raise UserError(
            f"data.classes is 'folder', but {source} has no class folders; use 'none', or "
            "put the images of every class into a folder of its own"
        )
    if unknown := sorted(set(only_classes) - set(names.values())):
        raise UserError(
            f"data.only_classes names {', '.join(unknown)}, which {source} has not; "
            f"it has {', '.join(sorted(set(names.values())))}"
        )
    wanted = set(only_classes) or set(names.values())
    selected = [Chosen(file, names[file.path]) for file in images if names.get(file.path) in wanted]
    if classes == "none":
        return [Chosen(file, None) for file, _ in selected], rejected
    for file in images:
        if file.path not in names:
            rejected.append(BadFile(file.path, "lies in no class folder"))
    return selected, rejected


def _is_text(path: str) -> bool:
    """Whether the name is UTF-8. Other bytes stand in it as surrogates, which no file of the data
    set can hold."""
    return not any("\udc80" <= letter <= "\udcff" for letter in path)


def _common(folders: Iterable[PurePosixPath]) -> PurePosixPath:
    """The deepest folder that contains all these folders; it may be one of them."""
    chains = [(*folder.parts,) for folder in folders]
    shared = []
    for level in zip(*chains, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return PurePosixPath(*shared)


def arrange(
    config: DataConfig, first: Sequence[Chosen], second: Sequence[Chosen] | None
) -> dict[Part, list[Chosen]]:
    """The parts of the data set, each in the order in which it is stored. The order is random, so
    that every shard has images of many classes.

    Raises UserError when there are too few images for the parts asked for.
    """
    if second is not None and config.second is not None and config.second.pairs != "none":
        parts = _paired(config, first, second)
    else:
        parts = {}
        parts["A"], parts["A_held_out"] = _cut(shuffled(first, "gan-train shards"), config.held_out)
        if second is not None:
            parts["B"], parts["B_held_out"] = _cut(
                shuffled(second, "gan-train second source"), config.held_out
            )
    for name, images in parts.items():
        if not images and name in ("A", "B"):
            raise UserError(f"no image is left for part {name}: lower data.held_out, or add images")
    return {name: images for name, images in parts.items() if images}


def shuffled(images: Sequence[Chosen], key: str) -> list[Chosen]:
    """The images in a random order, which depends on their number and the key alone."""
    return [images[turn] for turn in permutation(len(images), key, FORMAT)]


def _cut(images: list[Chosen], share: float) -> tuple[list[Chosen], list[Chosen]]:
    """The images before and after a cut; `share` of them, from 0 to 1, lie after it."""
    cut = len(images) - round(share * len(images))
    return images[:cut], images[cut:]


def _paired(
    config: DataConfig, first: Sequence[Chosen], second: Sequence[Chosen]
) -> dict[Part, list[Chosen]]:
    """The parts of two sources whose images are paired by their file names. The two images of a
    held-out pair have the same place in their parts."""
    assert config.second is not None
    # names are compared below the top folder, or below the deepest folder that all files share,
    # whichever finds more pairs
    ways = [(_by_name(first, deepest), _by_name(second, deepest)) for deepest in (False, True)]
    a, b = max(ways, key=lambda way: len(way[0].keys() & way[1].keys()))
    common = sorted(a.keys() & b.keys())
    if not common:
        raise UserError(
            f"data.second.pairs is `{config.second.pairs}`, but the two sources have no file name "
            "in common; allowed for such data: none"
        )
    names = [common[turn] for turn in permutation(len(common), "pairs", FORMAT)]
    cut = len(names) - round(config.held_out * len(names))
    training, held_out = names[:cut], names[cut:]
    if config.second.pairs == "training":
        of_a, of_b = training, training
    else:  # no pair is in both A and B; an image without a partner may be in its part
        of_a, of_b = (
            training[side::2] + sorted(own.keys() - other.keys())
            for side, own, other in ((0, a, b), (1, b, a))
        )
        of_a = [of_a[turn] for turn in permutation(len(of_a), "first source", FORMAT)]
        of_b = [of_b[turn] for turn in permutation(len(of_b), "second source", FORMAT)]
    return {
        "A": [a[name] for name in of_a],
        "B": [b[name] for name in of_b],
        "A_held_out": [a[name] for name in held_out],
        "B_held_out": [b[name] for name in held_out],
    }


def _by_name(images: Sequence[Chosen], deepest: bool) -> Mapping[str, Chosen]:
    """The images by their paths, without file endings, below a folder that holds all of them: the
    deepest such folder, or the top one."""
    paths = [PurePosixPath(image.file.path) for image in images]
    shared = _common(path.parent for path in paths)
    top = shared if deepest else PurePosixPath(*shared.parts[:1])
    return {
        str(path.relative_to(top).with_suffix("")): image
        for path, image in zip(paths, images, strict=True)
    }
