"""Small files of vision transformers with random weights, under the names of the published ones."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, DEPTH, HIDDEN = 128, 2, 96
State = dict[str, Tensor]


def dinov2(grid: int = 20, registers: int = 0, gated: bool = False, seed: int = 0) -> State:
    """Tensors of facebook/dinov2-* with `grid` x `grid` positions and patches of 14 pixels."""
    random = _Random(seed)
    state = {
        "embeddings.cls_token": random(1, 1, WIDTH),
        "embeddings.mask_token": random(1, WIDTH),
        "embeddings.position_embeddings": random(1, 1 + grid**2, WIDTH),
        **random.layer("embeddings.patch_embeddings.projection", WIDTH, 3, 14, 14),
        **random.norm("layernorm"),
    }
    if registers:
        state["embeddings.register_tokens"] = random(1, registers, WIDTH)
    first, second = ("weights_in", "weights_out") if gated else ("fc1", "fc2")
    for number in range(DEPTH):
        block = f"encoder.layer.{number}"
        for name in ("attention.query", "attention.key", "attention.value", "output.dense"):
            state |= random.layer(f"{block}.attention.{name}", WIDTH, WIDTH)
        state |= random.layer(f"{block}.mlp.{first}", HIDDEN * (1 + gated), WIDTH)
        state |= random.layer(f"{block}.mlp.{second}", WIDTH, HIDDEN)
        for name in ("norm1", "norm2"):
            state |= random.norm(f"{block}.{name}")
        for name in ("layer_scale1", "layer_scale2"):
            state[f"{block}.{name}.lambda1"] = random(WIDTH)
    return state


def clip(grid: int = 7, patch: int = 32, seed: int = 0) -> State:
    """Tensors of openai/clip-vit-*, with 40 features, some of the half for texts among them."""
    random = _Random(seed)
    vision = "vision_model"
    kernel = random.layer("kernel", WIDTH, 3, patch, patch)["kernel.weight"]
    state = {
        "logit_scale": random(),
        "text_model.embeddings.token_embedding.weight": random(9, 8),
        "text_projection.weight": random(40, 8),
        f"{vision}.embeddings.class_embedding": random(WIDTH),
        f"{vision}.embeddings.patch_embedding.weight": kernel,
        f"{vision}.embeddings.position_embedding.weight": random(1 + grid**2, WIDTH),
        f"{vision}.embeddings.position_ids": torch.arange(1 + grid**2)[None],
        **random.norm(f"{vision}.pre_layrnorm"),
        **random.norm(f"{vision}.post_layernorm"),
        "visual_projection.weight": random(40, WIDTH),
    }
    for number in range(DEPTH):
        block = f"{vision}.encoder.layers.{number}"
        for name in "qkv":
            state |= random.layer(f"{block}.self_attn.{name}_proj", WIDTH, WIDTH)
        state |= random.layer(f"{block}.self_attn.out_proj", WIDTH, WIDTH)
        state |= random.layer(f"{block}.mlp.fc1", HIDDEN, WIDTH)
        state |= random.layer(f"{block}.mlp.fc2", WIDTH, HIDDEN)
        state |= random.norm(f"{block}.layer_norm1") | random.norm(f"{block}.layer_norm2")
    return state


def save(state: State, path: Path) -> tuple[str, str]:
    """Write the file; returns its path and its SHA-256."""
    save_file(state, path)
    return str(path), hashlib.sha256(path.read_bytes()).hexdigest()


class _Random:
    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator) / 2

    def layer(self, name: str, *shape: int) -> State:
        weight = 2 * self(*shape) / math.prod(shape[1:]) ** 0.5
        return {f"{name}.weight": weight, f"{name}.bias": self(shape[0])}

    def norm(self, name: str) -> State:
        return {f"{name}.weight": 1 + self(WIDTH), f"{name}.bias": self(WIDTH)}
