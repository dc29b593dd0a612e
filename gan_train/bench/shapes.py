"""The shape of a recipe's images where there is no data set to ask."""

from __future__ import annotations

from gan_train.adversary import ImageShape
from gan_train.config import Config


def shape_of(config: Config) -> ImageShape:
    """The shape, with two classes for data that have classes: their number hardly matters to the
    time of a step."""
    channels = 1 if config.data.colour == "grey" else 3
    classes = ("a", "b") if config.data.classes == "folder" else ()
    return ImageShape(channels, config.data.resolution, classes)
