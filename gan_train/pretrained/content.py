"""The content loss of super-resolution: the distance of two images in a recognition network.

Ledig et al. 2016 (arXiv 1609.04802), section 2.2.1, equation 5: a loss on pixels alone rewards
blur, a loss on features does not. The network is frozen and no submodule of an adversary: it is
loaded at its first use, moves to the device and type of the images, and is in no checkpoint.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from gan_train.errors import UserError
from gan_train.pretrained.efficientnet import EfficientNetLite0, load_efficientnet
from gan_train.pretrained.weights import fetch

ContentName = Literal["efficientnet_lite0", "vgg19", "vgg19_torchvision"]
_SETTING = "family.content_"
_UNREADABLE = (
    *(SafetensorError, RuntimeError, ValueError, EOFError, LookupError),
    torch.serialization.pickle.UnpicklingError,  # type: ignore[attr-defined]  # weights_only's
)


class _Network(Protocol):
    least_side: int
    """The smallest side of an image, in pixels. Every side must be a multiple of it."""

    def features(self, rgb: Tensor) -> Tensor:
        """Features [n, D] of images [n, 3, H, W] in [-1, 1], scaled so that the distance of two
        images is the squared difference summed over D."""


class ContentDistance:
    """A distance of two images by a frozen network, differentiable in the first image."""

    def __init__(self, name: ContentName, weights: str | None, sha256: str | None) -> None:
        """`weights` (path or URL) and `sha256` are given for vgg19 and for no other network. No
        file is opened yet. Raises UserError for settings that do not fit together."""
        assert name in get_args(ContentName)
        if name == "vgg19" and (weights is None or sha256 is None):
            raise UserError(
                "family.content: vgg19 needs `family.content_weights`, the path or URL of "
                "torchvision's VGG19 (a state dict or safetensors file), and "
                "`family.content_sha256`, its digest; or set family.content to efficientnet_lite0, "
                "which comes with an installed package"
            )
        if name != "vgg19" and (weights is not None or sha256 is not None):
            raise UserError(
                f"family.content: {name} knows where its weights are: leave "
                "`family.content_weights` and `family.content_sha256` out, or set family.content "
                "to vgg19"
            )
        self.name, self._weights, self._sha256 = name, weights, sha256
        self._network: Any = None
        self._kind: tuple[torch.device, torch.dtype] | None = None

    def check(self, side: int) -> None:
        """Raise UserError unless images of this side fit the network."""
        network = _EfficientNet if self.name == "efficientnet_lite0" else VGG19Features
        least = network.least_side
        if side % least:
            raise UserError(
                f"family.content: {self.name} needs pictures whose side is a multiple of {least} "
                f"pixels, data.resolution is {side}"
            )

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Load the network, unless that is done, and convert it to this device and type.

        Raises UserError where the weights are missing, or not the right ones.
        """
        if self._network is None:
            self._network = self._load()
        if self._kind != (device, dtype):
            self._network.to(device, dtype)
            self._kind = device, dtype

    def __call__(self, images: Tensor, truth: Tensor) -> Tensor:
        """The distance float [n] of each pair of images [n, C, H, W], C 1 or 3, about [-1, 1].

        Grey images are repeated to three channels. Sides must have passed `check`. The gradient
        reaches `images` alone.
        """
        assert images.shape == truth.shape and images.shape[1] in (1, 3)
        self.prepare(truth.device, truth.dtype)
        with torch.no_grad():
            expected = self._features(truth)
        return (self._features(images.to(truth.dtype)) - expected).square().sum(1)

    def _features(self, images: Tensor) -> Tensor:
        rgb = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        network: _Network = self._network
        return network.features(rgb)

    def _load(self) -> nn.Module:
        if self.name == "efficientnet_lite0":
            return _EfficientNet().eval().requires_grad_(False)
        if self.name == "vgg19_torchvision":
            state = _torchvision_state()
        else:
            assert self._weights is not None and self._sha256 is not None
            state = _read_state(self._weights, self._sha256)
        return VGG19Features(state).eval().requires_grad_(False)


class _EfficientNet(nn.Module):
    """Features by `EfficientNetLite0.embed`, of images at their own size."""

    least_side = 32

    def __init__(self) -> None:
        super().__init__()
        self.network = load_efficientnet()

    def features(self, rgb: Tensor) -> Tensor:
        return self.network.embed(EfficientNetLite0.normalise(rgb))


# ---- VGG19 -------------------------------------------------------------------------------------

_STAGES = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)
"""Output channels of VGG19's convolutions, by stage. 2x2 max pooling separates the stages."""
_RESCALE = 12.75
"""Features are divided by this, so that the content loss is about as large as the pixel loss: Ledig
et al. 2016, section 3.2."""


class VGG19Features(nn.Module):
    """VGG19 up to conv5_4, before its activation: Simonyan and Zisserman 2014 (arXiv 1409.1556),
    table 1, column E.

    `state` is torchvision's state dict: `features.0.weight` belongs to conv1_1, and the classifier
    is ignored. Inputs are normalised by ImageNet's mean and deviation, as those weights expect.
    """

    least_side = 16
    mean: Tensor
    deviation: Tensor

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """Raises UserError where a convolution is missing or has another shape."""
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for stage in _STAGES:
            for outputs in stage:
                convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
                for kind, parameter in convolution.named_parameters():
                    _fill(parameter, state, f"features.{len(layers)}.{kind}")
                layers += [convolution, nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers[:-2])  # without the last activation and max pooling
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, rgb: Tensor) -> Tensor:
        """Maps of conv5_4 [n, 512, H / 16, W / 16] of images [n, 3, H, W] in [-1, 1]."""
        maps: Tensor = self.layers((rgb * 0.5 + 0.5 - self.mean) / self.deviation)
        return maps

    def features(self, rgb: Tensor) -> Tensor:
        """Features [n, D] of images [n, 3, H, W], scaled so that the distance is the one of
        equation 5, except that it is also a mean over the channels."""
        maps = self(rgb).flatten(1)
        return maps / (_RESCALE * math.sqrt(maps.shape[1]))


@torch.no_grad()
def _fill(parameter: Tensor, state: Mapping[str, Tensor], name: str) -> None:
    found = state.get(name)
    if found is None or found.shape != parameter.shape:
        shape = "is missing" if found is None else f"is {list(found.shape)}"
        raise UserError(
            f"family.content_weights: {name} {shape}, expected is {list(parameter.shape)}: not the "
            "state dict of torchvision's VGG19 without batch normalisation"
        )
    parameter.copy_(found)


def _read_state(location: str, sha256: str) -> Mapping[str, Tensor]:
    """The tensors of the file by name, after a check of its digest. A URL is downloaded once, to
    torch's hub folder."""
    data = fetch(location, sha256, Path(torch.hub.get_dir()) / "gan-train", _SETTING)
    state: Any
    try:
        if location.endswith(".safetensors"):
            state = load(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise UserError(
            f"family.content_weights: {location} holds no tensors alone; save the network's "
            "`state_dict()` by torch.save or safetensors"
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(
            f"family.content_weights: {location} holds no state dict, but a "
            f"{type(state).__name__}; save the network's `state_dict()`"
        )
    return state


def _torchvision_state() -> Mapping[str, Tensor]:
    """VGG19's ImageNet weights, which torchvision downloads once and keeps."""
    try:
        # RuntimeError: a torchvision that was built for another torch
        from torchvision.models import (  # type: ignore[import-not-found, unused-ignore]
            VGG19_Weights,
        )
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"family.content: vgg19_torchvision cannot import torchvision ({error}); install the "
            "release that belongs to the installed torch, or give VGG19's file by "
            "`family.content: vgg19`, or use efficientnet_lite0"
        ) from error
    state: Mapping[str, Tensor] = VGG19_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)
    return state
