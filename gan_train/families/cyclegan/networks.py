"""CycleGAN's generator and discriminator: Zhu et al. 2017 (arXiv 1703.10593), appendix 7.2.

Both are fully convolutional, and no layer mixes images. Convolutions before instance normalisation
have no bias, because the normalisation would subtract it.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INITIAL_DEVIATION = 0.02  # of the weights at the start, appendix 7.2


def reflected(x: Tensor, margin: int) -> Tensor:
    """Mirror the borders without repeating the edge. [N, C, H, W] -> [N, C, H + 2m, W + 2m].

    This equals `F.pad` in mode `reflect`, whose derivative is summed in random order on a GPU.
    Both sides must be longer than the margin.
    """
    m = margin
    assert min(x.shape[-2:]) > m, f"{list(x.shape)} cannot be mirrored by {m}"
    x = torch.cat([x[..., 1 : m + 1, :].flip(-2), x, x[..., -m - 1 : -1, :].flip(-2)], dim=-2)
    return torch.cat([x[..., 1 : m + 1].flip(-1), x, x[..., -m - 1 : -1].flip(-1)], dim=-1)


def normalised(x: Tensor) -> Tensor:
    """Instance normalisation: Ulyanov et al. 2016 (arXiv 1607.08022), equation 4, not learned."""
    return F.instance_norm(x)


class ResidualBlock(nn.Module):
    """R_k: two 3x3 convolutions added to their input. [N, C, H, W] -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(channels, channels, 3, bias=False)
        self.conv1 = nn.Conv2d(channels, channels, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(normalised(self.conv0(reflected(x, 1))))
        return x + normalised(self.conv1(reflected(y, 1)))


class Generator(nn.Module):
    """Translates images [N, C, H, W], about in [-1, 1], to the other domain. In the paper's terms
    its layers are c7s1-w, d2w, d4w, the residual blocks, u2w, uw, c7s1-C. H and W must
    be multiples of `unit`, at least `smallest`. With `skip`, the input is added to the output,
    which may then leave the range."""

    def __init__(self, channels: int, width: int, halvings: int, blocks: int, skip: bool) -> None:
        super().__init__()
        widths = [width << level for level in range(halvings + 1)]
        self.unit = 1 << halvings
        self.smallest = max(4, 2 * self.unit)  # the least side that the widest margins can mirror
        self.skip = skip
        self.first = nn.Conv2d(channels, width, 7, bias=False)
        self.down = nn.ModuleList(
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1, bias=False)
            for fine, coarse in pairwise(widths)
        )
        self.blocks = nn.ModuleList(ResidualBlock(widths[-1]) for _ in range(blocks))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(coarse, fine, 3, 2, padding=1, output_padding=1, bias=False)
            for coarse, fine in pairwise(reversed(widths))
        )
        self.last = nn.Conv2d(width, channels, 7)
        initialise(self)
        if skip:
            nn.init.zeros_(self.last.weight)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(normalised(self.first(reflected(image, 3))))  # [N, width, H, W]
        for layer in self.down:
            x = F.relu(normalised(layer(x)))
        for block in self.blocks:
            x = block(x)  # [N, width 2^h, H / 2^h, W / 2^h]
        for layer in self.up:
            x = F.relu(normalised(layer(x)))
        x = self.last(reflected(x, 3))  # [N, C, H, W]
        return image + x if self.skip else torch.tanh(x)


class Discriminator(nn.Module):
    """PatchGAN: images [N, C, H, W] to a map of logits [N, h, w], each of which sees a patch.

    It has `layers` 4x4 convolutions that downsample by 2, a 4x4 convolution of stride 1, and one to
    the logits. Channels double from layer to layer, up to 8 times `width`. With 3 layers it is the
    paper's C64-C128-C256-C512, and patches are 70x70.
    """

    def __init__(self, channels: int, width: int, layers: int) -> None:
        super().__init__()
        widths = [width << min(level, 3) for level in range(layers + 1)]
        self.first = nn.Conv2d(channels, width, 4, stride=2, padding=1)
        self.hidden = nn.ModuleList(
            nn.Conv2d(a, b, 4, stride=1 if level == layers else 2, padding=1, bias=False)
            for level, (a, b) in enumerate(pairwise(widths), start=1)
        )
        self.last = nn.Conv2d(widths[-1], 1, 4, padding=1)
        initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        x = F.leaky_relu(self.first(image), 0.2)
        for layer in self.hidden:
            x = F.leaky_relu(normalised(layer(x)), 0.2)
        logits: Tensor = self.last(x)
        return logits.squeeze(1)


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Set weights ~ N(0, 0.02^2) and biases to zero."""
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.normal_(parameter, std=INITIAL_DEVIATION)
