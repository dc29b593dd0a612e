"""Vision transformers against their formulas in NumPy, and which files are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from gan_train.errors import UserError
from gan_train.metrics.extractors import build_extractor, identify
from gan_train.pretrained.vision_transformer import load_vision_transformer
from tests.vision_transformers import DEPTH, State, clip, dinov2, save

CPU = torch.device("cpu")
Array = NDArray[np.float64]


def pictures(count: int, channels: int = 3, side: int = 24) -> Tensor:
    random = torch.Generator().manual_seed(5)
    return torch.randint(256, (count, channels, side, side), generator=random, dtype=torch.uint8)


# ---- the formulas ------------------------------------------------------------------------------


def cubic(x: Array, a: float) -> Array:
    """Keys 1981, equation 4, for any a."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((x - 5) * x + 8) * a * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def resampling(new: int, old: int, antialias: bool) -> Array:
    """The matrix [new, old] of the bicubic filter. With `antialias` it is widened (a = -1/2), and
    ends at the border; without, the border is repeated (a = -3/4), and `new` counts as new + .1."""
    step = old / (new if antialias else new + 0.1)
    centres = (np.arange(new) + 0.5) * step - 0.5
    if antialias:
        taps = cubic((centres[:, None] - np.arange(old)) / max(step, 1), -0.5)
        return taps / taps.sum(1, keepdims=True)
    places = np.arange(-3, old + 3)
    taps, found = cubic(centres[:, None] - places, -0.75), np.zeros((new, old))
    for place, column in zip(places.clip(0, old - 1), taps.T, strict=True):
        found[:, place] += column
    return found


def normalised(x: Array, weight: Array, bias: Array, epsilon: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * weight + bias


def attention(query: Array, key: Array, value: Array) -> Array:
    """Vaswani et al. 2017, equation 1, of tokens [t, width] in heads of 64 channels."""
    found = []
    for head in range(query.shape[1] // 64):
        q, k, v = (x[:, 64 * head : 64 * head + 64] for x in (query, key, value))
        scores = np.exp(q @ k.T / 8)
        found.append(scores / scores.sum(1, keepdims=True) @ v)
    return np.concatenate(found, 1)


def patches(image: Array, kernel: Array) -> Array:
    """What each patch of a picture [3, side, side] becomes: [patches, width]."""
    size, ends = kernel.shape[2], range(kernel.shape[2], image.shape[1] + 1, kernel.shape[2])
    cut = [image[:, y - size : y, x - size : x].ravel() for y in ends for x in ends]
    return np.array(cut) @ kernel.reshape(len(kernel), -1).T


def dinov2_feature(w: dict[str, Array], image: Array) -> Array:
    def linear(x: Array, name: str) -> Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        return normalised(x, w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    registers, positions = (
        w.get("embeddings.register_tokens"),
        w["embeddings.position_embeddings"][0],
    )
    place = "embeddings.patch_embeddings.projection"
    grid = math.isqrt(len(positions) - 1)
    matrix = resampling(16, grid, registers is not None) if grid != 16 else np.eye(16)
    maps = positions[1:].reshape(grid, grid, -1)
    maps = np.einsum("ai,bj,ijw->abw", matrix, matrix, maps).reshape(256, -1)
    x = patches(image, w[f"{place}.weight"]) + w[f"{place}.bias"] + maps
    x = np.concatenate([w["embeddings.cls_token"][0] + positions[:1], x])
    if registers is not None:
        x = np.concatenate([x, registers[0]])
    for number in range(DEPTH):
        block = f"encoder.layer.{number}"
        y = norm(x, f"{block}.norm1")
        names = (f"{block}.attention.attention.{name}" for name in ("query", "key", "value"))
        y = attention(*(linear(y, name) for name in names))
        x = x + linear(y, f"{block}.attention.output.dense") * w[f"{block}.layer_scale1.lambda1"]
        y = norm(x, f"{block}.norm2")
        if f"{block}.mlp.weights_in.weight" in w:
            gate, y = np.split(linear(y, f"{block}.mlp.weights_in"), 2, axis=1)
            y = linear(gate / (1 + np.exp(-gate)) * y, f"{block}.mlp.weights_out")
        else:
            y = linear(y, f"{block}.mlp.fc1")
            y = linear(y * (1 + np.vectorize(math.erf)(y / 2**0.5)) / 2, f"{block}.mlp.fc2")
        x = x + y * w[f"{block}.layer_scale2.lambda1"]
    return norm(x[0], "layernorm")


def clip_feature(w: dict[str, Array], image: Array) -> Array:
    def linear(x: Array, name: str) -> Array:
        return x @ w[f"vision_model.{name}.weight"].T + w[f"vision_model.{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        return normalised(x, w[f"vision_model.{name}.weight"], w[f"vision_model.{name}.bias"], 1e-5)

    place = "vision_model.embeddings"
    x = patches(image, w[f"{place}.patch_embedding.weight"])
    x = np.concatenate([w[f"{place}.class_embedding"][None], x])
    x = norm(x + w[f"{place}.position_embedding.weight"], "pre_layrnorm")
    for number in range(DEPTH):
        block = f"encoder.layers.{number}"
        y = norm(x, f"{block}.layer_norm1")
        y = attention(*(linear(y, f"{block}.self_attn.{name}_proj") for name in "qkv"))
        x = x + linear(y, f"{block}.self_attn.out_proj")
        y = linear(norm(x, f"{block}.layer_norm2"), f"{block}.mlp.fc1")
        x = x + linear(y / (1 + np.exp(-1.702 * y)), f"{block}.mlp.fc2")
    return w["visual_projection.weight"] @ norm(x[0], "post_layernorm")


@pytest.mark.parametrize(
    ("kind", "state", "feature", "word"),
    [
        ("dinov2", dinov2(grid=20), dinov2_feature, "vit128x2p14"),
        ("dinov2", dinov2(grid=16, gated=True), dinov2_feature, "vit128x2p14"),
        ("dinov2", dinov2(grid=20, registers=3), dinov2_feature, "vit128x2p14_reg"),
        ("clip", clip(), clip_feature, "vit128x2p32"),
    ],
)
def test_features_are_the_papers(
    kind: Any, state: State, feature: Callable[..., Array], word: str, tmp_path: Path
) -> None:
    location, digest = save(state, tmp_path / "model.safetensors")
    extractor = build_extractor(kind, location, digest, tmp_path, CPU)
    images = pictures(2)
    features, layout = extractor.features_and_layout(images)
    inputs = load_vision_transformer(kind, Path(location)).prepared(images).double().numpy()
    numbers = {name: value.double().numpy() for name, value in state.items()}
    expected = np.stack([feature(numbers, image) for image in inputs])
    assert features.dtype == torch.float32 and layout is features
    assert extractor.dims == features.shape[1] == (40 if kind == "clip" else 128)
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    np.testing.assert_allclose(features.numpy(), expected, atol=2e-5)
    name = f"{kind}_{word}_{digest[:8]}"
    assert extractor.identity == identify(kind, location, digest, tmp_path)
    assert extractor.identity.frechet_name == f"fd_{name}" and extractor.identity.name == name
    assert extractor.identity.resize == "bicubic224"


def test_pictures_are_resized_as_pillow_does(tmp_path: Path) -> None:
    """By whom the features of the papers were made. Pillow's filters have 22 bits."""
    network = load_vision_transformer("clip", Path(save(clip(), tmp_path / "x")[0]))
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    deviation = np.array([0.26862954, 0.26130258, 0.27577711])
    for side in (24, 300):
        image = pictures(1, side=side)
        found = network.prepared(image)[0].permute(1, 2, 0).double().numpy() * deviation + mean
        shown = Image.fromarray(image[0].permute(1, 2, 0).numpy())
        expected = np.asarray(shown.resize((224, 224), Image.Resampling.BICUBIC), np.float64)
        apart = np.abs(found * 255 - expected)
        assert apart.max() < 1.01 and apart.mean() < 1e-3


def test_a_picture_stands_for_itself(tmp_path: Path) -> None:
    """Grey is three equal channels, and neighbours in a batch change nothing."""
    network = build_extractor("dinov2", *save(dinov2(), tmp_path / "x"), tmp_path, CPU)
    grey = pictures(9, channels=1)
    features = network.features(grey)
    torch.testing.assert_close(features, network.features(grey.expand(-1, 3, -1, -1)))
    alone = torch.cat([network.features(image) for image in grey.split(1)])
    torch.testing.assert_close(features, alone, atol=1e-5, rtol=1e-5)


# ---- files -------------------------------------------------------------------------------------


def test_weights_of_half_precision_count_in_full(tmp_path: Path) -> None:
    half = {n: v.half() if v.is_floating_point() else v for n, v in clip().items()}
    full = {n: v.float() if v.is_floating_point() else v for n, v in half.items()}
    found, expected = (
        build_extractor("clip", *save(state, tmp_path / name), tmp_path, CPU).features(pictures(1))
        for state, name in ((half, "half"), (full, "full"))
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["dinov2", "clip"])
@pytest.mark.parametrize("given", [(None, "0" * 64), ("x.safetensors", None)])
def test_path_and_digest_are_required(name: str, given: tuple[Any, Any], tmp_path: Path) -> None:
    for ask in (identify, lambda *a: build_extractor(*a, CPU)):
        with pytest.raises(UserError, match=r"evaluate\.weights.*evaluate\.sha256.*sha256sum"):
            ask(name, *given, tmp_path)


def without(name: str) -> State:
    return {key: value for key, value in dinov2().items() if key != name}


@pytest.mark.parametrize(
    ("kind", "state", "reason"),
    [
        ("dinov2", without("layernorm.bias"), r"layernorm\.bias is missing"),
        ("dinov2", without("embeddings.cls_token"), "cls_token is missing"),
        ("dinov2", clip(), r"projection\.weight is missing"),
        ("clip", dinov2(), r"patch_embedding\.weight is missing"),
        ("dinov2", dinov2() | {"layernorm.bias": torch.zeros(5)}, r"\[5\], expected is \[128\]"),
        ("dinov2", dinov2() | {"layernorm.bias": torch.zeros(128).int()}, "torch.int32"),
        ("dinov2", dinov2() | {"embeddings.position_embeddings": torch.zeros(5)}, r"shape \[5\]"),
        ("clip", clip(grid=60, patch=8), "no such network"),
    ],
)
def test_another_file_is_refused_in_a_line(
    kind: str, state: State, reason: str, tmp_path: Path
) -> None:
    location, digest = save(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"model\.safetensors is not a whole .*{reason}") as raised:
        build_extractor(kind, location, digest, tmp_path, CPU)
    assert "\n" not in str(raised.value)


def test_a_wrong_digest_a_pickle_and_half_a_file_are_refused(tmp_path: Path) -> None:
    location, _ = save(dinov2(), tmp_path / "model.safetensors")
    for ask in (identify, lambda *a: build_extractor(*a, CPU)):
        with pytest.raises(UserError, match="was not opened"):
            ask("dinov2", location, "0" * 64, tmp_path)
    path = Path(location)
    path.write_bytes(path.read_bytes()[:-1])
    torch.save(dinov2(), tmp_path / "pytorch_model.bin")
    for file in (path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(UserError, match=f"{file.name} cannot be read as safetensors"):
            load_vision_transformer("dinov2", file)
