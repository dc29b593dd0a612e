"""The folded, mirrored network against the textbook form of the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_train.errors import UserError
from gan_train.metrics.extractors import (
    EFFICIENTNET,
    EfficientNetExtractor,
    build_extractor,
    identify,
)
from gan_train.pretrained import frozen_convolution
from gan_train.pretrained.efficientnet import bundled_weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def extractor() -> EfficientNetExtractor:
    return EfficientNetExtractor(CPU)


def _images(count: int, channels: int, side: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    images = F.interpolate(coarse, size=side, mode="bicubic").clamp(0, 1) * 255
    return images.round().to(torch.uint8)


def _same_padding(x: Tensor, weight: Tensor, stride: int, groups: int = 1) -> Tensor:
    """TensorFlow's SAME: as many outputs as ceil(size / stride), the odd pixel at the end."""
    size, kernel = x.shape[-1], weight.shape[-1]
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    before, after = total // 2, total - total // 2
    return F.conv2d(F.pad(x, (before, after) * 2), weight, stride=stride, groups=groups)


def textbook_maps(weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """What each block of EfficientNet-Lite0 gives, and last its head, before pooling: SAME padding,
    then batch normalisation, then ReLU6."""

    def layer(x: Tensor, conv: str, norm: str, stride: int = 1, depthwise: bool = False) -> Tensor:
        weight = weights[f"{conv}.weight"]
        x = _same_padding(x, weight, stride, len(weight) if depthwise else 1)
        statistics = (weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"])
        return F.batch_norm(
            x, *statistics, weights[f"{norm}.weight"], weights[f"{norm}.bias"], eps=1e-3
        )

    maps = []
    x = F.relu6(layer(x, "_conv_stem", "_bn0", 2))
    for block in range(16):
        name, y = f"_blocks.{block}", x
        if block:
            y = F.relu6(layer(y, f"{name}._expand_conv", f"{name}._bn0"))
        stride = 2 if block in (1, 3, 5, 11) else 1
        y = F.relu6(layer(y, f"{name}._depthwise_conv", f"{name}._bn1", stride, True))
        y = layer(y, f"{name}._project_conv", f"{name}._bn2")
        x = x + y if x.shape == y.shape else y
        maps.append(x)
    return [*maps, F.relu6(layer(x, "_conv_head", "_bn1"))]


def published_weights() -> dict[str, Tensor]:
    """The state dict as published, in float64."""
    state = torch.load(bundled_weights(), weights_only=True)
    return {name: value.double() for name, value in state.items()}


def test_features_are_those_of_the_textbook_network(extractor: EfficientNetExtractor) -> None:
    images = _images(3, 3, 224)
    *_, head = textbook_maps(published_weights(), (images.double() - 127) / 128)
    expected = head.mean((2, 3))
    features = extractor.features(images)
    assert features.dtype == torch.float32 and features.shape == (3, 1280)
    torch.testing.assert_close(features.double(), expected, rtol=1e-4, atol=1e-4)


def test_grey_is_repeated_and_upsampled_bilinearly(extractor: EfficientNetExtractor) -> None:
    grey = _images(2, 1, 32)
    features = extractor.features(grey)
    torch.testing.assert_close(features, extractor.features(grey.expand(-1, 3, -1, -1)))
    upsampled = F.interpolate(grey.double(), size=224, mode="bilinear")
    prepared = extractor._prepared(grey)
    torch.testing.assert_close(prepared.double(), (upsampled - 127) / 128, rtol=0, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_fused_convolutions_agree_with_single_steps(
    channels: int, extractor: EfficientNetExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More images than are taken at a time."""
    images = _images(11, channels, 32)
    fused = extractor.features_and_layout(images)
    monkeypatch.setattr(frozen_convolution, "_fusible", lambda x: False)
    single = extractor.features_and_layout(images)
    for one, other in zip(fused, single, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_nothing_is_fused_where_a_derivative_or_another_type_is_wanted() -> None:
    x = torch.zeros(1, 3, 8, 8)
    with torch.no_grad():
        assert frozen_convolution._fusible(x)
        assert not frozen_convolution._fusible(x.double())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not frozen_convolution._fusible(x)
    assert not frozen_convolution._fusible(x)


def test_downsampling_averages_instead_of_picking_pixels(extractor: EfficientNetExtractor) -> None:
    board = torch.zeros(1, 1, 448, 448, dtype=torch.uint8)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = 254
    inner = extractor._prepared(board)[..., 8:-8, 8:-8]
    assert inner.abs().max() < 0.01  # mid-grey


def test_features_depend_on_the_image_alone(extractor: EfficientNetExtractor) -> None:
    images = _images(7, 3, 48)
    features, layout = extractor.features_and_layout(images)
    assert layout.shape == (7, extractor.layout_dims)
    single = torch.cat([extractor.features(image[None]) for image in images])
    torch.testing.assert_close(features, single, rtol=1e-4, atol=1e-4)
    assert (features[0] - features[1]).abs().max() > 0.1


def test_layout_knows_where_things_are(extractor: EfficientNetExtractor) -> None:
    """Moving a blob across the picture moves the layout more than the pooled features."""
    images = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    images[0, 0, 4:10, 4:10] = images[1, 0, 22:28, 22:28] = 255
    features, layout = (F.normalize(part, dim=1) for part in extractor.features_and_layout(images))
    assert (layout[0] - layout[1]).norm() > 1.5 * (features[0] - features[1]).norm()


def test_names_and_clashing_settings() -> None:
    assert identify(EFFICIENTNET.name, None, None, Path()) == EFFICIENTNET
    assert EFFICIENTNET.frechet_name == "fd_efficientnet_lite0"
    with pytest.raises(UserError, match="leave the key out"):
        identify(EFFICIENTNET.name, None, "0" * 64, Path())
    with pytest.raises(UserError, match="local copy"):
        identify(EFFICIENTNET.name, "https://example.org/weights.pth", None, Path())


def test_other_weights_are_refused_before_they_are_opened(tmp_path: Path) -> None:
    copy = tmp_path / "weights.pth"
    data = bytearray(bundled_weights().read_bytes())
    data[len(data) // 2] ^= 1
    copy.write_bytes(data)
    with pytest.raises(UserError, match="was not opened"):
        build_extractor(EFFICIENTNET.name, str(copy), None, tmp_path, CPU)
    with pytest.raises(UserError, match="does not exist"):
        build_extractor(EFFICIENTNET.name, str(tmp_path / "none"), None, tmp_path, CPU)
