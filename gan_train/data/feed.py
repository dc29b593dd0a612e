"""Gives the trainer its batches, with the further images that the task needs beside each.

The images come from part A of the data set, by `loader.py`. For super-resolution a batch also has
them downsampled (`low`); for translation it also has images of part B (`other`). Part B has an
order and epochs of its own, unless the two parts hold pairs, which stay together. A batch is a
function of its position alone.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from gan_train.adversary import Adversary, Generates, Translates, Upscales
from gan_train.config import DataConfig
from gan_train.data.index import Index
from gan_train.data.loader import LoadedBatch, Loader
from gan_train.errors import UserError
from gan_train.images.resize import bicubic_downsample
from gan_train.rng import derive


def check_data(config: DataConfig, adversary: Adversary) -> None:
    """Raise UserError unless the data set has the parts that the task needs, and no others."""
    translates = isinstance(adversary, Translates)
    if translates and config.second is None:
        raise UserError(
            "data.second is empty, but this family translates between two sets of images: name a "
            "second source, or other classes of the first: --set data.second.only_classes=[...]"
        )
    if (
        isinstance(adversary, Translates)
        and adversary.paired
        and config.second is not None
        and config.second.pairs != "training"
    ):
        raise UserError(
            f"data.second.pairs is `{config.second.pairs}`, but a loss compares with the true "
            "partner; allowed: training (or leave the loss out: family.paired_weight=0)"
        )
    if config.second is not None and not translates:
        raise UserError("data.second is for families that translate; leave it out")
    if config.held_out and isinstance(adversary, Generates):
        raise UserError(
            f"data.held_out={config.held_out}: this family is scored by comparing distributions, "
            "not image by image; allowed: 0"
        )


class Feed:
    """Makes one worker's batches, from any position on."""

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        index: Index,
        directory: Path,
        adversary: Adversary,
        rank: int,
        world_size: int,
    ) -> None:
        """Raises UserError when the world size does not divide the lanes."""
        common: dict[str, Any] = {
            "lanes": config.lanes,
            "block": config.block,
            "grain": adversary.grain,
            "mirror": config.mirror,
            "workers": config.loader_workers,
            "cache_mb": config.cache_mb,
            "rank": rank,
            "world_size": world_size,
        }
        first, second = index.part("A"), index.part("B")
        assert first is not None
        self._first = Loader(first, directory, seed=seed, **common)
        self._second: Loader | None = None
        if second is not None:
            paired = config.second is not None and config.second.pairs == "training"
            # pairs stay together because two parts of one size have one order under one seed
            own = seed if paired else derive(seed, "second")
            self._second = Loader(second, directory, seed=own, **common)
        self._scale = adversary.scale if isinstance(adversary, Upscales) else 1

    def keys(self, start: int, count: int) -> list[str]:
        """The keys of the samples of part A, in the shards, at positions `start` and after it."""
        return self._first.keys(start, count)

    def batches(self, start: int, batch: int, resolution: int) -> Generator[LoadedBatch]:
        """Endless batches from position `start` on; arguments and errors as in `Loader.batches`."""
        firsts = self._first.batches(start, batch, resolution)
        if self._second is None:
            with closing(firsts):
                for loaded in firsts:
                    yield self._with_low(loaded)
            return
        with closing(firsts), closing(self._second.batches(start, batch, resolution)) as seconds:
            for loaded, other in zip(firsts, seconds, strict=True):
                yield replace(loaded, beside={"other": other.images})

    def _with_low(self, loaded: LoadedBatch) -> LoadedBatch:
        if self._scale == 1:
            return loaded
        return replace(loaded, beside={"low": bicubic_downsample(loaded.images, self._scale)})
