"""The feature networks, and how scores are named after them.

An extractor fixes everything between a stored 8-bit image and a feature: colours, resize, network,
weights. A score depends on all of this, so an `ExtractorIdentity` records it. Only the Inception-v3
of 2015-12-05 gives a number that may be called FID. On vision transformers the distance is that of
Stein et al. 2023 (arXiv 2306.04675) for DINOv2, and CLIP-FID (Kynkäänniemi et al. 2022, arXiv
2203.06026) for CLIP.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from gan_train.errors import UserError
from gan_train.pretrained.efficientnet import (
    EFFICIENTNET_SHA256,
    EfficientNetLite0,
    load_efficientnet,
)
from gan_train.pretrained.vision_transformer import (
    SOURCES,
    Architecture,
    Kind,
    architecture_of,
    load_vision_transformer,
)
from gan_train.pretrained.weights import fetch, fetch_file, load_script

INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
"""`inception-2015-12-05.pt`, 95,607,719 bytes, as published with stylegan2-ada-pytorch."""
_PART = 8  # how many images each thread of a CPU takes at a time


@dataclass(frozen=True)
class ExtractorIdentity:
    """The description of a feature network that is stored with every score. `name` and `resize` may
    be parts of file names."""

    name: str
    resize: str
    """The filter and size of the resize before the network."""
    weights_sha256: str
    suffix: str
    """The ending of the names of measures on these features; empty for FID's own features."""
    frechet_name: str
    """The name of the Fréchet distance on these features."""


EFFICIENTNET = ExtractorIdentity(
    name="efficientnet_lite0",
    resize="bilinear224",
    weights_sha256=EFFICIENTNET_SHA256,
    suffix="_efficientnet_lite0",
    frechet_name="fd_efficientnet_lite0",
)


class Extractor(Protocol):
    """Turns images into features."""

    identity: ExtractorIdentity
    dims: int
    layout_dims: int

    def features(self, images: Tensor) -> Tensor:
        """Features float32 [n, dims] of images uint8 [n, C, H, W]. C is 1 or 3; grey is repeated to
        RGB."""

    def features_and_layout(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The same features, and others float32 [n, layout_dims] that serve to predict classes."""


class EfficientNetExtractor:
    """EfficientNet-Lite0 at 224 pixels with its published ImageNet weights; needs no download.

    The resize is bilinear on float pixels, and antialiased (by a wider filter) where it
    downsamples.
    """

    identity = EFFICIENTNET
    dims = EfficientNetLite0.dims
    layout_dims = EfficientNetLite0.layout_dims
    _SIDE = 224

    def __init__(self, device: torch.device, weights: Path | None = None) -> None:
        """`weights` is a copy of the published file; None takes that of the installed package.

        Raises UserError when the file is missing or is not the published one.
        """
        self._network = load_efficientnet(weights).to(device)
        self._device = device

    def features(self, images: Tensor) -> Tensor:
        return self.features_and_layout(images)[0]

    @torch.inference_mode()
    def features_and_layout(self, images: Tensor) -> tuple[Tensor, Tensor]:
        # on a CPU few at a time, so that the input stays in the cache
        size = _PART * torch.get_num_threads() if self._device.type == "cpu" else len(images)
        parts = [self._network(self._prepared(part)) for part in images.split(size)]
        features, layout = zip(*parts, strict=True)
        return torch.cat(features), torch.cat(layout)

    def _prepared(self, images: Tensor) -> Tensor:
        """The network's input [n, C, 224, 224]; the network repeats grey."""
        assert images.dtype == torch.uint8 and images.shape[1] in (1, 3)
        x = (images.to(self._device).float() - 127) / 128
        down = max(x.shape[2:]) > self._SIDE
        x = F.interpolate(x, size=(self._SIDE, self._SIDE), mode="bilinear", antialias=down)
        return x.contiguous(memory_format=torch.channels_last)


class InceptionExtractor:
    """Inception-v3 of 2015-12-05 from the published TorchScript file.

    The file resizes (TensorFlow's bilinear, 299 pixels) and normalises by itself. It is called as
    `model(images, return_features=True)`, images uint8 [n, 3, H, W], and gives float [n, 2048].
    A TorchScript file can run code of its author, so a SHA-256 is required, and checked before the
    file is opened. With any other digest than the published one, for example of a conversion of
    your own, scores are not called FID, but have the digest in their names.
    """

    def __init__(
        self, location: str, sha256: str, cache: Path, device: torch.device, dims: int = 2048
    ) -> None:
        """`location` is a path or URL; a URL is downloaded to `cache` once. Raises UserError for a
        file that cannot be had, or has another SHA-256."""
        self._model = load_script(fetch(location, sha256, cache), device)
        self._device = device
        self.identity = inception_identity(sha256)
        self.dims = self.layout_dims = dims

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8 and images.shape[1] in (1, 3)
        rgb = images.to(self._device).expand(-1, 3, -1, -1).contiguous()
        features: Tensor = self._model(rgb, return_features=True).float()
        if features.shape != (len(images), self.dims):
            raise UserError(
                f"evaluate.weights: the network returned {tuple(features.shape)}, expected is "
                f"{(len(images), self.dims)}: not the published TorchScript file of Inception-v3"
            )
        return features

    def features_and_layout(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return features, features


class VisionTransformerExtractor:
    """DINOv2 or CLIP from a safetensors file as published on Hugging Face, which holds numbers
    alone. Its sizes come from the file. `VisionTransformer.forward` says what is done to a picture,
    and which feature is taken.

    The digest is checked before the file is opened, and is in the names of all scores: files of the
    same sizes may have other weights.
    """

    def __init__(
        self, kind: Kind, location: str, sha256: str, cache: Path, device: torch.device
    ) -> None:
        """`location` is a path or URL; a URL is downloaded to `cache` once. Raises UserError for a
        file that cannot be had, has another SHA-256 or is of another kind."""
        path = fetch_file(location, sha256, cache)
        self._network = load_vision_transformer(kind, path).to(device)
        self._device = device
        self.identity = vision_transformer_identity(self._network.architecture, sha256)
        self.dims = self.layout_dims = self._network.architecture.dims

    @torch.inference_mode()
    def features(self, images: Tensor) -> Tensor:
        size = _PART * torch.get_num_threads() if self._device.type == "cpu" else len(images)
        return torch.cat([self._network(part.to(self._device)) for part in images.split(size)])

    def features_and_layout(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return features, features


def vision_transformer_identity(architecture: Architecture, sha256: str) -> ExtractorIdentity:
    """The identity of the file with these sizes and this digest."""
    name = f"{architecture.kind}_{architecture.word}_{sha256[:8]}"
    return ExtractorIdentity(
        name=name,
        resize=f"bicubic{architecture.side}",
        weights_sha256=sha256,
        suffix=f"_{name}",
        frechet_name=f"fd_{name}",
    )


def inception_identity(sha256: str) -> ExtractorIdentity:
    """The identity of the file with this digest: FID's own for the published file, else one whose
    names contain the digest."""
    published = sha256 == INCEPTION_SHA256
    suffix = "" if published else f"_inception_{sha256[:8]}"
    return ExtractorIdentity(
        name="inception_v3_2015_12_05" if published else suffix[1:],
        resize="tf-bilinear299",
        weights_sha256=sha256,
        suffix=suffix,
        frechet_name="fid" if published else f"fd{suffix}",
    )


def identify(name: str, weights: str | None, sha256: str | None, cache: Path) -> ExtractorIdentity:
    """The identity of the extractor `name`. `weights` is a path or URL, `sha256` its expected
    digest; both may be None for the bundled network. Only of a vision transformer is the file
    opened, whose sizes are part of its name; a download goes to `cache`.

    Raises UserError for settings that do not fit together, and as `VisionTransformerExtractor`.
    """
    if name in get_args(Kind):
        kind, location, digest = _vision_transformer(name, weights, sha256)
        path = fetch_file(location, digest, cache)
        return vision_transformer_identity(architecture_of(kind, path), digest)
    if name == "inception_v3_2015_12_05":
        if weights is None or sha256 is None:
            raise UserError(
                "evaluate.extractor: inception_v3_2015_12_05 needs `evaluate.weights`, the path or "
                "URL of `inception-2015-12-05.pt` as published with stylegan2-ada-pytorch, and "
                f"`evaluate.sha256`, which is {INCEPTION_SHA256} for that file"
            )
        return inception_identity(sha256)
    assert name == EFFICIENTNET.name
    if sha256 not in (None, EFFICIENTNET.weights_sha256):
        raise UserError(
            f"evaluate.sha256 is {sha256}; efficientnet_lite0 has one published file, whose "
            f"digest is {EFFICIENTNET.weights_sha256}: leave the key out"
        )
    if weights is not None and "://" in weights:
        raise UserError(
            f"evaluate.weights is {weights}; efficientnet_lite0 comes with an installed "
            "package: leave the key out, or give the path of a local copy"
        )
    return EFFICIENTNET


def _vision_transformer(
    name: str, weights: str | None, sha256: str | None
) -> tuple[Kind, str, str]:
    """The settings of a vision transformer, which needs all of them."""
    if weights is None or sha256 is None:
        raise UserError(
            f"evaluate.extractor: {name} needs `evaluate.weights`, the path or URL of a "
            f"`model.safetensors` such as that of {SOURCES[name]} on Hugging Face, and "
            "`evaluate.sha256`, its digest, which `sha256sum` tells"
        )
    return cast("Kind", name), weights, sha256


def build_extractor(
    name: str, weights: str | None, sha256: str | None, cache: Path, device: torch.device
) -> Extractor:
    """The extractor `name`, loaded from `weights` (see `identify`). A download goes to `cache`.

    Raises UserError when the weights are not the right ones.
    """
    if name in get_args(Kind):
        settings = _vision_transformer(name, weights, sha256)
        return VisionTransformerExtractor(*settings, cache, device)
    identity = identify(name, weights, sha256, cache)
    if identity == EFFICIENTNET:
        return EfficientNetExtractor(device, Path(weights) if weights else None)
    assert weights is not None
    return InceptionExtractor(weights, identity.weights_sha256, cache, device)
