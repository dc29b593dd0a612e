"""A family with styles whose every answer is known: pixel (j, i) shows number i of layer j's w."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gan_train.adversary import Adversary, ImageShape, Noise
from gan_train.inference import Generator
from gan_train.rng import BatchRandom

SIDE = 16
CLASSES = ("round", "square", "star")
STORED = 0.5  # in the last column, where noise shows


class LinearStyles(Adversary):
    """w = mean + z A + B[class] is linear in z; images are the numbers of ws themselves."""

    z_dim, w_dim, num_ws = 4, 6, 10

    def __init__(self, channels: int = 1, conditional: bool = False) -> None:
        super().__init__()
        self.shape = ImageShape(channels, SIDE, CLASSES if conditional else ())
        self.conditional = conditional
        random = BatchRandom(7, "fake", torch.arange(8))
        self.mixer = nn.Parameter(0.1 * random.normal(self.w_dim)[: self.z_dim])
        self.classes = nn.Parameter(0.2 * random.normal(self.w_dim)[: len(CLASSES)])
        self.mean = nn.Parameter(torch.linspace(-0.25, 0.25, self.w_dim))

    def styles(self, z: Tensor, label: Tensor | None) -> Tensor:
        w = self.mean + z @ self.mixer
        return w if label is None else w + self.classes[label]

    def truncate(
        self, ws: Tensor, psi: float, cutoff: int | None = None, label: Tensor | None = None
    ) -> Tensor:
        mean = self.mean if label is None else (self.mean + self.classes[label])[:, None]
        drawn = ws.clone()
        drawn[:, :cutoff] = mean + psi * (ws[:, :cutoff] - mean)
        return drawn

    def synthesise(self, ws: Tensor, noise: Noise) -> Tensor:
        n, layers, dims = ws.shape
        assert (layers, dims) == (self.num_ws, self.w_dim)
        plane = nn.functional.pad(ws, (0, SIDE - dims, 0, SIDE - layers))  # [n, SIDE, SIDE]
        grain = torch.zeros(n, SIDE)
        if noise == "const":
            grain = grain + STORED
        elif not isinstance(noise, str):
            grain = 0.3 * noise.normal(1, SIDE, 1).view(n, SIDE)
        plane = torch.cat([plane[:, :, :-1], grain[:, :, None]], dim=2)
        return plane[:, None].expand(n, self.shape.channels, SIDE, SIDE)

    def sample(self, z: Tensor, label: Tensor | None, truncation: float = 1.0) -> Tensor:
        ws = self.styles(z, label)[:, None].expand(-1, self.num_ws, -1)
        return self.synthesise(self.truncate(ws, truncation, label=label), "const")


class NoStyles(Adversary):
    """A family with latents alone: every pixel of an image is the first number of its z."""

    z_dim, conditional = 4, False

    def __init__(self) -> None:
        super().__init__()
        self.shape = ImageShape(1, SIDE)
        self.gain = nn.Parameter(torch.tensor(0.3))

    def sample(self, z: Tensor, label: Tensor | None, truncation: float = 1.0) -> Tensor:
        return (self.gain * z[:, :1, None, None]).expand(-1, 1, SIDE, SIDE)


def linear(channels: int = 1, conditional: bool = False) -> Generator:
    """A generator of `LinearStyles`."""
    return Generator(LinearStyles(channels, conditional), "linear")


def pixels(w: Tensor) -> Tensor:
    """float [..., w_dim] as the 8-bit values that images show for it."""
    return (w * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def shown(image: Tensor) -> Tensor:
    """uint8 [num_ws, w_dim]: what an image uint8 [C, R, R] says of its ws."""
    return image[0, : LinearStyles.num_ws, : LinearStyles.w_dim]
