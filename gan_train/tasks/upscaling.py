"""The task of upscaling: pictures are compared with the true ones, beside bicubic upsampling.

    perceptual_efficientnet_lite0   the mean perceptual distance to the true picture, over tiles of
                                    128 pixels, which decides which checkpoint is best. (With
                                    evaluate.perceptual lpips_vgg16: `perceptual`)
    psnr_y, ssim_y                  on luma, with a border of `scale` pixels cut off, as in papers
    ..._se                          the standard error of the mean over pictures
    ..._bicubic                     the same measure of bicubic upsampling
    ..._Set5                        the same measure on the pictures of one folder, where there are
                                    several

Pictures are files of any size from `evaluate.pictures`, or else the held-out images of the data
set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gan_train.adversary import Upscales
from gan_train.data.pictures import TestPicture, TestPictures
from gan_train.errors import UserError
from gan_train.images.pixels import to_float
from gan_train.images.resize import bicubic_downsample, bicubic_upsample
from gan_train.images.tiles import upscale_picture
from gan_train.metrics.estimates import of_mean
from gan_train.metrics.perceptual import distance
from gan_train.metrics.psnr_ssim import psnr, ssim
from gan_train.metrics.real import read_places
from gan_train.metrics.scores import Estimate, flat, reference_name, split
from gan_train.nn.collectives import all_sum
from gan_train.tasks.task import Setting, perceptual_of, rounded

_ROWS = 8
_SIDE = 128
"""The side of the tiles in which pictures are compared and shown. The perceptual distance would
downsample larger tiles, and so lose the detail that is to be judged."""


class Upscaling:
    """Draws and scores a generator that upscales, on test pictures."""

    def __init__(self, setting: Setting) -> None:
        config, index, runtime = setting.config, setting.index, setting.runtime
        assert isinstance(setting.adversary, Upscales)
        self.adversary, self.shards, self.device = setting.adversary, setting.shards, runtime.device
        self.scale = setting.adversary.scale
        self.rank, self.world_size = runtime.rank, runtime.world_size
        self.held_out = index.part("A_held_out")
        self.pictures: TestPictures | None = None
        if config.evaluate.pictures is not None:
            self.pictures = TestPictures(config, self.scale)
        elif self.held_out is None:
            raise UserError(
                "super-resolution is scored on pictures that training never sees: set "
                "data.held_out=0.02, or name some: evaluate.pictures=FOLDER"
            )
        self.perceptual = perceptual_of(setting)
        self.metric = f"perceptual{self.perceptual.suffix}"
        self.images = (
            len(self.pictures)
            if self.pictures is not None
            else min(config.evaluate.images, self.held_out.samples if self.held_out else 0)
        )
        self.data = index.content_hash

    def _picture(self, place: int) -> TestPicture:
        if self.pictures is not None:
            return self.pictures[place]
        assert self.held_out is not None
        high = read_places(self.held_out, self.shards, torch.tensor([place]))[0][0]
        return TestPicture("", str(place), high, bicubic_downsample(high, self.scale))

    def _upscaled(self, low: Tensor) -> Tensor:
        """The upscaled picture uint8 [C, scale h, scale w] of a picture uint8 [C, h, w]."""
        overlap = self.adversary.reach
        low = low.to(self.device)
        return upscale_picture(self.adversary.upscale, low, self.scale, overlap=overlap)

    @torch.inference_mode()
    def grid(self) -> tuple[Tensor, int]:
        """The middles of pictures uint8 [n, C, 128, 128], and the number of columns. A row has two
        pictures, each in three versions: bicubic, upscaled, true."""
        shown = []
        for place in range(min(2 * _ROWS, self.images)):
            picture = self._picture(place)
            versions = (
                bicubic_upsample(picture.low, self.scale),
                self._upscaled(picture.low).cpu(),
                picture.high,
            )
            shown += [_middle(version) for version in versions]
        return torch.stack(shown), min(6, len(shown))

    @torch.inference_mode()
    def measure(self) -> dict[str, Any]:
        places = range(self.rank, self.images, self.world_size)
        columns = list(self._measures(self._picture(0)))
        found = torch.zeros(self.images, len(columns), dtype=torch.float64, device=self.device)
        sets = torch.zeros(self.images, dtype=torch.int64, device=self.device)
        names = self._sets()
        for place in places:
            picture = self._picture(place)
            values = self._measures(picture)
            found[place] = torch.tensor([values[name] for name in columns], dtype=torch.float64)
            sets[place] = names.index(picture.set)
        all_sum(found)
        all_sum(sets)

        means = _means(columns, found)
        scores = flat(means)
        if len(names) > 1:
            for number, name in enumerate(names):
                of_set = flat(_means(columns, found[sets == number]))
                scores |= {f"{column}_{name}": value for column, value in of_set.items()}
        blocks = rounded(means[self.metric].blocks)
        return {"scores": scores, "protocol": self._protocol(), "blocks": blocks}

    @torch.inference_mode()
    def rehearse(self, count: int) -> None:
        shape = self.adversary.shape
        for place in range(count):
            size = (shape.channels, shape.resolution, shape.resolution)
            high = torch.randint(256, size, dtype=torch.uint8)
            low = bicubic_downsample(high, self.scale)
            self._measures(TestPicture("", str(place), high, low))

    def _sets(self) -> list[str]:
        return self.pictures.sets if self.pictures is not None else [""]

    def _measures(self, picture: TestPicture) -> dict[str, float]:
        """The scores of one picture by name, for the network and for bicubic upsampling."""
        bicubic = bicubic_upsample(picture.low, self.scale)
        versions = ((self._upscaled(picture.low), str), (bicubic, _of_bicubic))
        values: dict[str, float] = {}
        truth = picture.high[None].to(self.device)
        for version, name_of in versions:
            image = version[None].to(self.device)
            apart = distance(self.perceptual, _tiles(image), _tiles(truth))
            values[name_of(self.metric)] = float(apart.mean())
            values[name_of("psnr_y")] = float(psnr(image, truth, self.scale))
            values[name_of("ssim_y")] = float(ssim(image, truth, self.scale))
        return values

    def _protocol(self) -> dict[str, str | int]:
        identity = self.pictures.identity if self.pictures is not None else self.data
        return {
            "data": hashlib.sha256(identity.encode()).hexdigest(),
            "extractor": self.perceptual.name,
            "weights": self.perceptual.weights_sha256,
            "resize": f"tiles{_SIDE}-{self.perceptual.resize}",
            "images": self.images,
            "reference": f"x{self.scale}, luma with a border of {self.scale} cut off",
        }


def _means(columns: Sequence[str], values: Tensor) -> dict[str, Estimate]:
    """The means of values [n, columns]; those of bicubic upsampling without an error."""
    found = {name: of_mean(column) for name, column in zip(columns, values.T, strict=True)}
    return {n: m if split(n)[1] is None else Estimate(m.value) for n, m in found.items()}


def _of_bicubic(name: str) -> str:
    """The name of a score's value for bicubic upsampling."""
    return reference_name(name, "bicubic")


def _tiles(image: Tensor) -> Tensor:
    """float [n, C, 128, 128] in [-1, 1]: tiles that cover a picture uint8 [1, C, H, W]. The last
    two of a row or column may overlap. A side below 128 pixels is not cut."""
    height, width = image.shape[2:]
    tiles = [
        image[:, :, top : top + _SIDE, left : left + _SIDE]
        for top in _starts(height)
        for left in _starts(width)
    ]
    return to_float(torch.cat(tiles))


def _starts(size: int) -> list[int]:
    """The pixels at which tiles begin along a side of `size` pixels."""
    last = max(0, size - _SIDE)
    return sorted({*range(0, last, _SIDE), last})


def _middle(image: Tensor) -> Tensor:
    """The middle [C, 128, 128] of a picture [C, H, W]; a smaller picture is padded with black."""
    top, left = (max(0, side - _SIDE) // 2 for side in image.shape[1:])
    cut = image[:, top : top + _SIDE, left : left + _SIDE]
    canvas = image.new_zeros(len(image), _SIDE, _SIDE)
    canvas[:, : cut.shape[1], : cut.shape[2]] = cut
    return canvas
