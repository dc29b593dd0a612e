"""Perceptual distances: how different two images look, differentiable in both images.

A distance between feature maps depends on network, weights and resize; each combination of these
has a name. Every distance here is the squared Euclidean distance of two embeddings, so an image
that is compared often needs to be embedded only once.
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
    """Embeds images so that the distance of two embeddings says how different the images look."""

    name: str
    suffix: str
    """The ending of the names of measures in this distance; empty for LPIPS on VGG16."""
    resize: str
    """The filter and size of the resize before the network; `none` where there is none."""
    weights_sha256: str

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings float [n, D] of images float [n, C, H, W], about [-1, 1]. C is 1 or 3; grey is
        repeated to RGB."""


def distance(perceptual: Perceptual, a: Tensor, b: Tensor) -> Tensor:
    """float [n]: how different a and b [n, C, H, W] look, pair by pair; 0 for equal images."""
    assert a.shape == b.shape
    # in one pass, so that rounding is alike on both sides
    first, second = perceptual.embed(torch.cat([a, b])).chunk(2)
    return (first - second).square().sum(1)


class EfficientNetPerceptual:
    """A distance like LPIPS, on the bundled EfficientNet-Lite0; needs no download.

    It is not LPIPS, and its numbers cannot be compared with published ones: the network is another,
    and all channels count alike, where LPIPS has weights fitted to people's judgement. The rest is
    as in Zhang et al. 2018 (arXiv 1801.03924), equation 1: feature vectors are scaled to unit
    length at every place, differences squared, averaged over places and summed over levels. The
    levels are the network's last maps at 1/2, 1/4 ... 1/32 of the size.

    Images are resized to 128 pixels, bilinearly (antialiased where this downsamples). The network
    was trained at 224, but the distance needs its local features, not its recognition of objects.
    At 128 it takes a third of the time, which matters in a projection or a path length, with
    hundreds of passes.
    """

    name = EFFICIENTNET.name
    suffix = EFFICIENTNET.suffix
    weights_sha256 = EFFICIENTNET.weights_sha256
    _SIDE = 128
    resize = f"bilinear{_SIDE}"

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        """The network computes in `dtype`, float32 or float64. Raises UserError when the package
        with its weights is missing."""
        self._network = load_efficientnet().to(device, dtype)
        self._device, self._dtype = device, dtype

    def embed(self, images: Tensor) -> Tensor:
        # on a CPU two images per thread are fastest: larger activations fall out of the cache
        size = 2 * torch.get_num_threads() if self._device.type == "cpu" else len(images)
        parts = images.split(size)
        return torch.cat([self._network.embed(self._prepared(part)) for part in parts])

    def _prepared(self, images: Tensor) -> Tensor:
        """The network's input [n, 3, 128, 128]: (x - 127) / 128 for pixels x from 0 to 255, as it
        was trained."""
        assert images.shape[1] in (1, 3)
        x = EfficientNetLite0.normalise(images.to(self._device, self._dtype))
        down = max(x.shape[2:]) > self._SIDE
        x = F.interpolate(x, size=(self._SIDE, self._SIDE), mode="bilinear", antialias=down)
        return x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


class LpipsVgg16:
    """LPIPS on VGG16 (Zhang et al. 2018, arXiv 1801.03924), from the published TorchScript file.

    The file is called as `model(images, resize_images=False, return_lpips=True)`, images float32
    [n, 3, H, W] from 0 to 255, and gives float [n, D] that includes LPIPS's weights. A TorchScript
    file can run code of its author, so a SHA-256 is required, and checked before the file is
    opened. With any other digest than the published one, `name` and `suffix` contain the digest.
    """

    resize = "none"
    _LEAST_SIDE = 16  # VGG16 downsamples by two four times before its last map

    def __init__(self, location: str, sha256: str, cache: Path, device: torch.device) -> None:
        """`location` is a path or URL; a URL is downloaded to `cache` once. Raises UserError for a
        file that cannot be had, or has another SHA-256."""
        data = fetch(location, sha256, cache, "evaluate.perceptual_")
        self._model = load_script(data, device)
        self._device = device
        published = sha256 == LPIPS_SHA256
        self.suffix = "" if published else f"_vgg16_{sha256[:8]}"
        self.name = "lpips_vgg16" if published else self.suffix[1:]
        self.weights_sha256 = sha256

    def embed(self, images: Tensor) -> Tensor:
        """Embed images as `Perceptual.embed` says. Raises UserError for images that are too small,
        and where the file is not LPIPS's."""
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
    """The perceptual distance `name`, loaded. `weights` is a path or URL and `sha256` its expected
    digest; both must be None for the bundled network. A download goes to `cache`.

    Raises UserError for settings that do not fit together, and for weights with another digest.
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
