"""Vision transformers of DINOv2 and CLIP: frozen feature networks, read from published files.

Dosovitskiy et al. 2020 (arXiv 2010.11929), section 3.1: a picture is cut into patches, each becomes
a token, and blocks of attention and of a network of two layers follow, with normalisation before
each. The first token, the class token, collects the feature. In DINOv2 (Oquab et al. 2023, arXiv
2304.07193) learned factors scale what a block adds (LayerScale: Touvron et al. 2021, arXiv
2103.17239), the giant's two layers are gated (SwiGLU: Shazeer 2020, arXiv 2002.05202), and some
files have registers (Darcet et al. 2023, arXiv 2309.16588). CLIP (Radford et al. 2021, arXiv
2103.00020) normalises before the first block, too, and ends with a linear map to the space that
pictures share with texts.

The files are `model.safetensors` as published on Hugging Face for facebook/dinov2-* and
openai/clip-vit-*. Sizes follow from the shapes in a file's header, which is checked before any
tensor is read; a head of attention has 64 channels in all of these networks. What the file has
beside the network, such as CLIP's half for texts, is not read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gan_train.errors import UserError
from gan_train.files.tensors import load_some, shapes_of

Kind = Literal["dinov2", "clip"]
SOURCES = {"dinov2": "facebook/dinov2-large", "clip": "openai/clip-vit-base-patch32"}
"""A place on Hugging Face where a file of each kind is published."""

_HEAD = 64  # channels
_SIDE = 224  # at which DINOv2 is used, though trained at 518
_OFFSET = 0.1  # DINOv2's own code adds this to the new side of its grid of positions
_LETTERS = {384: "s", 768: "b", 1024: "l", 1536: "g"}
_WIDEST = {"dinov2": 1536, "clip": 1024}  # wider networks of CLIP's kind have wider heads
_DEEPEST = 48
_MEAN = {"dinov2": (0.485, 0.456, 0.406), "clip": (0.48145466, 0.4578275, 0.40821073)}
_DEVIATION = {"dinov2": (0.229, 0.224, 0.225), "clip": (0.26862954, 0.26130258, 0.27577711)}
_NAMES = {
    "dinov2": {
        "patches": "embeddings.patch_embeddings.projection",
        "class_token": "embeddings.cls_token",
        "registers": "embeddings.register_tokens",
        "positions": "embeddings.position_embeddings",
        "blocks": "encoder.layer",
        "query": "attention.attention.query",
        "key": "attention.attention.key",
        "value": "attention.attention.value",
        "out": "attention.output.dense",
        "scale1": "layer_scale1.lambda1",
        "scale2": "layer_scale2.lambda1",
        "last": "layernorm",
    },
    "clip": {
        "patches": "vision_model.embeddings.patch_embedding",
        "class_token": "vision_model.embeddings.class_embedding",
        "positions": "vision_model.embeddings.position_embedding.weight",
        "first": "vision_model.pre_layrnorm",
        "blocks": "vision_model.encoder.layers",
        "norm1": "layer_norm1",
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "out": "self_attn.out_proj",
        "norm2": "layer_norm2",
        "last": "vision_model.post_layernorm",
        "projection": "visual_projection",
    },
}
"""What the files call the parts of `VisionTransformer`, where they differ from the names here."""


def _published(kind: Kind, name: str) -> str:
    return ".".join(_NAMES[kind].get(part, part) for part in name.split("."))


@dataclass(frozen=True)
class Architecture:
    """The sizes of a vision transformer."""

    kind: Kind
    width: int
    depth: int
    hidden: int
    """The width between the two layers of a block."""
    gated: bool
    patch: int
    """The side of a patch in pixels."""
    grid: int
    """The side of the grid of positions in the file, in patches."""
    registers: int
    dims: int
    """The number of features."""

    @property
    def side(self) -> int:
        """The side in pixels of the pictures that the network takes: for DINOv2 224, as in Stein et
        al. 2023 (arXiv 2306.04675); for CLIP what it was trained at."""
        return _SIDE if self.kind == "dinov2" else self.grid * self.patch

    @property
    def word(self) -> str:
        """A short name, such as `vitl14`, or `vitl14_reg` with registers."""
        letter = _LETTERS.get(self.width, f"{self.width}x{self.depth}p")
        return f"vit{letter}{self.patch}{'_reg' if self.registers else ''}"


class _TwoLayers(nn.Module):
    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        self.quick = sizes.kind == "clip"
        self.fc1 = nn.Linear(sizes.width, sizes.hidden)
        self.fc2 = nn.Linear(sizes.hidden, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc1(x)
        # CLIP was trained with this approximation of GELU
        y = y * torch.sigmoid(1.702 * y) if self.quick else F.gelu(y)
        found: Tensor = self.fc2(y)
        return found


class _GatedTwoLayers(nn.Module):
    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        self.weights_in = nn.Linear(sizes.width, 2 * sizes.hidden)
        self.weights_out = nn.Linear(sizes.hidden, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        gate, y = self.weights_in(x).chunk(2, dim=-1)
        found: Tensor = self.weights_out(F.silu(gate) * y)
        return found


class _Block(nn.Module):
    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        width, scaled = sizes.width, sizes.kind == "dinov2"
        self.norm1 = _norm(sizes)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.norm2 = _norm(sizes)
        self.mlp = _GatedTwoLayers(sizes) if sizes.gated else _TwoLayers(sizes)
        self.scale1 = nn.Parameter(torch.empty(width)) if scaled else None
        self.scale2 = nn.Parameter(torch.empty(width)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + _times(self._attention(self.norm1(x)), self.scale1)
        return x + _times(self.mlp(self.norm2(x)), self.scale2)

    def _attention(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(2, (-1, _HEAD)).transpose(1, 2)  # [n, heads, tokens, 64]
            for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(query, key, value)
        found: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return found


def _norm(sizes: Architecture) -> nn.LayerNorm:
    return nn.LayerNorm(sizes.width, eps=1e-6 if sizes.kind == "dinov2" else 1e-5)


def _times(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale


class VisionTransformer(nn.Module):
    """A network with the sizes of `architecture`, whose weights are not set; see
    `load_vision_transformer`."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        sizes = self.architecture = architecture
        width, clip = sizes.width, sizes.kind == "clip"
        tokens = (sizes.side // sizes.patch) ** 2
        self.patches = nn.Conv2d(3, width, sizes.patch, stride=sizes.patch, bias=not clip)
        self.class_token = nn.Parameter(torch.empty(width))
        self.positions = nn.Parameter(torch.empty(1 + tokens, width))
        self.registers = (
            nn.Parameter(torch.empty(sizes.registers, width)) if sizes.registers else None
        )
        self.first = _norm(sizes) if clip else nn.Identity()
        self.blocks = nn.ModuleList(_Block(sizes) for _ in range(sizes.depth))
        self.last = _norm(sizes)
        self.projection = nn.Linear(width, sizes.dims, bias=False) if clip else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Features float [n, dims] of images uint8 [n, C, H, W], where grey (C = 1) stands for
        three equal channels.

        The whole picture is resized to `side` x `side` by a bicubic filter (a = -1/2), which is
        widened where it downsamples, and rounded to 8 bits after each direction, as Pillow does.
        DINOv2 gives the class token after the last normalisation, CLIP what its linear map makes of
        that: the embedding of the picture, not scaled to unit length.
        """
        x = self.patches(self.prepared(images)).flatten(2).mT  # [n, tokens, width]
        x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1) + self.positions
        if self.registers is not None:
            x = torch.cat([x, self.registers.expand(len(x), -1, -1)], 1)
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.projection(self.last(x[:, 0]))
        return features

    def prepared(self, images: Tensor) -> Tensor:
        """The resized pictures float32 [n, 3, side, side], normalised as the network was trained:
        pixels from 0 to 1, less the mean of ImageNet (DINOv2) or of CLIP's own pictures, over
        their deviation."""
        assert images.dtype == torch.uint8 and images.shape[1] in (1, 3)
        kind, side = self.architecture.kind, self.architecture.side
        x = images.float()
        for size in ((x.shape[2], side), (side, side)):  # first columns, then rows
            x = F.interpolate(x, size=size, mode="bicubic", antialias=True).round().clamp(0, 255)
        mean = x.new_tensor(_MEAN[kind]).view(3, 1, 1)
        deviation = x.new_tensor(_DEVIATION[kind]).view(3, 1, 1)
        return (x / 255 - mean) / deviation


# ---- files -------------------------------------------------------------------------------------


def architecture_of(kind: Kind, path: Path) -> Architecture:
    """The sizes of the network in a file, by its header alone.

    Raises UserError for any file but one of this kind whose tensors have the shapes that follow.
    """
    # DINOv2's tokens and positions are stored with leading ones
    shapes = {n: tuple(dropwhile(lambda d: d == 1, s)) for n, s in shapes_of(path).items()}

    def shape(name: str, rank: int) -> tuple[int, ...]:
        found = shapes.get(_published(kind, name))
        if found is None or len(found) != rank:
            what = "is missing" if found is None else f"has the shape {list(found)}"
            raise _other(kind, path, f"{_published(kind, name)} {what}")
        return found

    width, _, patch, _ = shape("patches.weight", 4)
    positions, _ = shape("positions", 2)
    depth = 0
    while _published(kind, f"blocks.{depth}.norm1.weight") in shapes:
        depth += 1
    gated = _published(kind, "blocks.0.mlp.weights_in.weight") in shapes
    hidden, _ = shape(f"blocks.0.mlp.{'weights_in' if gated else 'fc1'}.weight", 2)
    registers = _published(kind, "registers") in shapes
    sizes = Architecture(
        kind,
        width,
        depth,
        hidden // 2 if gated else hidden,
        gated,
        patch,
        math.isqrt(max(positions - 1, 0)),
        shape("registers", 2)[0] if registers else 0,
        shape("projection.weight", 2)[0] if kind == "clip" else width,
    )
    if not (
        0 < width <= _WIDEST[kind]
        and width % _HEAD == 0
        and 0 < depth <= _DEEPEST
        and 8 <= patch <= 32
        and _SIDE % patch == 0
        and 0 < sizes.side <= 2 * _SIDE
    ):
        raise _other(kind, path, f"no such network has {sizes}")
    for name, expected in _expected(sizes).items():
        if shape(name, len(expected)) != expected:
            found = list(shape(name, len(expected)))
            what = f"{_published(kind, name)} has the shape {found}, expected is {list(expected)}"
            raise _other(kind, path, what)
    return sizes


def load_vision_transformer(kind: Kind, path: Path) -> VisionTransformer:
    """The network in a file, in float32, on the CPU, for inference. Nothing in it is executed.

    Raises UserError as `architecture_of` does, and where the weights are whole numbers.
    """
    sizes = architecture_of(kind, path)
    network = _without_weights(sizes)
    state = {}
    for name, found in load_some(path, (_published(kind, n) for n in network.state_dict())).items():
        if not found.is_floating_point():
            raise _other(kind, path, f"{name} is {found.dtype}")
        # a copy, as the tensors may be the mapped file itself
        state[name] = found.to(torch.float32, copy=True)
    weights = {
        name: state[_published(kind, name)].view(shape) for name, shape in _expected(sizes).items()
    }
    weights["positions"] = _at_side(weights["positions"], sizes)
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)


def _without_weights(sizes: Architecture) -> VisionTransformer:
    with torch.device("meta"):
        return VisionTransformer(sizes)


def _expected(sizes: Architecture) -> dict[str, tuple[int, ...]]:
    """The shapes of the network's tensors in a file, less leading ones."""
    shapes = {n: tuple(value.shape) for n, value in _without_weights(sizes).state_dict().items()}
    return shapes | {"positions": (1 + sizes.grid**2, sizes.width)}


def _at_side(positions: Tensor, sizes: Architecture) -> Tensor:
    """The positions [1 + grid², width] of the file for the grid at `side`, as DINOv2's own code
    makes them: bicubic, antialiased only in networks with registers, and without these stretched
    as if the new grid had a tenth of a patch more."""
    side = sizes.side // sizes.patch
    if side == sizes.grid:
        return positions
    grid = positions[1:].T.unflatten(1, (sizes.grid, sizes.grid))[None]  # [1, width, grid, grid]
    if sizes.registers:
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    else:
        stretch = (side + _OFFSET) / sizes.grid
        grid = F.interpolate(grid, scale_factor=(stretch, stretch), mode="bicubic")
    return torch.cat([positions[:1], grid[0].flatten(1).T])


def _other(kind: Kind, path: Path, reason: str) -> UserError:
    name = {"dinov2": "DINOv2", "clip": "CLIP"}[kind]
    return UserError(
        f"evaluate.weights: {path} is not a whole model.safetensors of {name} ({reason}); fetch it "
        f"from Hugging Face, for instance from {SOURCES[kind]}, and renew `evaluate.sha256`"
    )
