"""How different two images look: distances between feature maps, differentiable in both images.

A perceptual distance fixes network, weights and resize, which is why it has a name. Every distance
here is the squared Euclidean distance of two embeddings, so an image that is compared often is
embedded once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_train.errors import UserError
from gan_train.metrics.extractors import EFFICIENTNET
from gan_train.pretrained.efficientnet import EfficientNetLite0, load_efficientnet
from gan_train.pretrained.weights import fetch, load_script

LPIPS_SHA256 = "b437eb095feaeb0b83eb3fa11200ebca4548ee39a07fb944a417ddc516cc07c3"
"""`vgg16.pt`, as published with stylegan2-ada-pytorch."""


class Perceptual(Protocol):
    """An embedding of images, in whose space the distance is how different they look."""

    name: str
    suffix: str
    """What the names of measures in this distance end in; empty for LPIPS on VGG16."""
    resize: str
    """The filter and size of the resize before the network; `none` where there is none."""
    weights_sha256: str

    def embed(self, images: Tensor) -> Tensor:
        """float [n, D] of images float [n, C, H, W], about [-1, 1], C 1 or 3: grey is repeated."""


def distance(perceptual: Perceptual, a: Tensor, b: Tensor) -> Tensor:
    """float [n]: how different a and b [n, C, H, W] look, pair by pair; 0 for equal images."""
    assert a.shape == b.shape
    # in one pass, so that rounding is alike on both sides
    first, second = perceptual.embed(torch.cat([a, b])).chunk(2)
    return (first - second).square().sum(1)


class EfficientNetPerceptual:
    """A distance in the manner of LPIPS on the bundled EfficientNet-Lite0; needs no network.

    It is not LPIPS, and its numbers compare with no published ones: another network, and all
    channels count alike, where LPIPS has weights fitted to people's judgement. The rest is as in
    Zhang et al. 2018 (arXiv 1801.03924), equation 1: feature vectors are scaled to unit length at
    every place, differences squared, averaged over places and summed over levels. The levels are
    the network's last maps at 1/2, 1/4 ... 1/32 of the size.

    Images are resized to 128 pixels, bilinearly (antialiased where that downsamples). The network
    was trained at 224, but here its local features count, not what it recognises. At 128 it takes
    a third of the time, which matters in the hundreds of passes of a projection or a path length.
    """

    name = EFFICIENTNET.name
    suffix = EFFICIENTNET.suffix
    weights_sha256 = EFFICIENTNET.weights_sha256
    _SIDE = 128
    resize = f"bilinear{_SIDE}"

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """Computes in `dtype`, float32 or float64. Raises UserError when the package is missing."""
        self._network = load_efficientnet().to(device, dtype)
        self._device, self._dtype = device, dtype

    def embed(self, images: Tensor) -> Tensor:
        # on a CPU two images a thread are fastest: larger activations fall out of the cache
        size = 2 * torch.get_num_threads() if self._device.type == "cpu" else len(images)
        parts = images.split(size)
        return torch.cat([self._network.embed(self._prepared(part)) for part in parts])

    def _prepared(self, images: Tensor) -> Tensor:
        """[n, 3, 128, 128]: (x - 127) / 128 of pixels x from 0 to 255, as in training."""
        assert images.shape[1] in (1, 3)
        x = EfficientNetLite0.normalise(images.to(self._device, self._dtype))
        down = max(x.shape[2:]) > self._SIDE
        x = F.interpolate(x, size=(self._SIDE, self._SIDE), mode="bilinear", antialias=down)
        return x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


class LpipsVgg16:
    """LPIPS on VGG16 (Zhang et al. 2018, arXiv 1801.03924), from the published TorchScript file.

    The file is called as `model(images, resize_images=False, return_lpips=True)`, images float32
    [n, 3, H, W] from 0 to 255, and gives float [n, D] that includes LPIPS's weights. TorchScript
    runs code of the file's author: that is why a SHA-256 is required and checked before the file is
    opened. With any other digest than the published one the names carry the digest.
    """

    resize = "none"
    _LEAST_SIDE = 16  # VGG16 downsamples by two four times before its last map

    def __init__(self, location: str, sha256: str, cache: Path, device: torch.device) -> None:
        """`location`: path or URL; a URL is downloaded to `cache` once. Raises UserError."""
        data = fetch(location, sha256, cache, "evaluate.perceptual_")
        self._model = load_script(data, device)
        self._device = device
        published = sha256 == LPIPS_SHA256
        self.suffix = "" if published else f"_vgg16_{sha256[:8]}"
        self.name = "lpips_vgg16" if published else self.suffix[1:]
        self.weights_sha256 = sha256

    def embed(self, images: Tensor) -> Tensor:
        """Raises UserError for images too small, and where the file is something else."""
        assert images.shape[1] in (1, 3)
        if min(images.shape[2:]) < self._LEAST_SIDE:
            raise UserError(
                f"evaluate.perceptual: lpips_vgg16 needs images of {self._LEAST_SIDE} pixels or "
                f"more, these have {min(images.shape[2:])}; use efficientnet_lite0"
            )
        pixels = (images.to(self._device).float() + 1) * 127.5
        rgb = pixels.expand(-1, 3, -1, -1).contiguous()
        features: Tensor = self._model(rgb, resize_images=False, return_lpips=True)
        if features.ndim != 2 or len(features) != len(images):
            raise UserError(
                f"evaluate.perceptual_weights: the network returned {tuple(features.shape)}, "
                f"expected is ({len(images)}, D): not the published TorchScript file of VGG16"
            )
        return features


def build_perceptual(
    name: str, weights: str | None, sha256: str | None, cache: Path, device: torch.device
) -> Perceptual:
    """The distance `name`, loaded. `weights` is a path or URL and `sha256` its expected digest; the
    bundled network has neither. A download goes to `cache`.

    Raises UserError for settings that do not fit, and for weights that are not the right ones.
    """
    if name == "efficientnet_lite0":
        if weights is not None or sha256 is not None:
            raise UserError(
                "evaluate.perceptual: efficientnet_lite0 comes with an installed package: leave "
                "`evaluate.perceptual_weights` and `evaluate.perceptual_sha256` out, or set "
                "`evaluate.perceptual` to lpips_vgg16"
            )
        return EfficientNetPerceptual(device)
    assert name == "lpips_vgg16"
    if weights is None or sha256 is None:
        raise UserError(
            "evaluate.perceptual: lpips_vgg16 needs `evaluate.perceptual_weights`, the path or URL "
            "of `vgg16.pt` as published with stylegan2-ada-pytorch, and "
            f"`evaluate.perceptual_sha256`, which is {LPIPS_SHA256} for that file"
        )
    return LpipsVgg16(weights, sha256, cache, device)
