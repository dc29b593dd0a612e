"""The content loss: its networks against their formulas, and where VGG19's weights come from."""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from gan_train.errors import UserError
from gan_train.metrics.perceptual import EfficientNetPerceptual, distance
from gan_train.pretrained import content
from gan_train.pretrained.content import ContentDistance, VGG19Features

CPU = torch.device("cpu")


def pictures(count: int, channels: int, side: int, seed: int = 0) -> Tensor:
    """float64 in [-1, 1], smooth."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 6, 6, generator=generator, dtype=torch.float64) * 2 - 1
    return F.interpolate(coarse, size=side, mode="bicubic").clamp(-1, 1)


def vgg_state(stages: tuple[tuple[int, ...], ...]) -> dict[str, Tensor]:
    """Random weights under torchvision's names, and a piece of the classifier."""
    generator = torch.Generator().manual_seed(3)
    state, inputs, place = {}, 3, 0
    for stage in stages:
        for outputs in stage:
            spread = (2 / (9 * inputs)) ** 0.5
            weight = torch.randn(outputs, inputs, 3, 3, generator=generator) * spread
            state[f"features.{place}.weight"] = weight
            state[f"features.{place}.bias"] = torch.randn(outputs, generator=generator) / 10
            inputs, place = outputs, place + 2
        place += 1
    return {**state, "classifier.0.weight": torch.zeros(4, inputs)}


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """VGG19 with few channels, for the tests of files."""
    stages = ((2, 2), (3, 3), (4,) * 4, (5,) * 4, (6,) * 4)
    monkeypatch.setattr(content, "_STAGES", stages)
    return vgg_state(stages)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def conv5_4(state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """VGG19's column E of the paper's table 1, written as its list of layers."""
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    x = ((images + 1) / 2 - mean) / deviation
    layers = "CRCRM" * 2 + "CRCRCRCRM" * 2 + "CRCRCRC"  # convolution, rectifier, maximum
    for place, layer in enumerate(layers):
        if layer == "C":
            weight, bias = (state[f"features.{place}.{kind}"] for kind in ("weight", "bias"))
            x = F.conv2d(x, weight.double(), bias.double(), padding=1)
        else:
            x = F.relu(x) if layer == "R" else F.max_pool2d(x, 2)
    return x


def test_efficientnets_distance_is_the_measured_one() -> None:
    """At 128 pixels, where the measure of `metrics/perceptual.py` does not resize."""
    a, b = pictures(2, 3, 128), pictures(2, 3, 128, seed=1)
    found = ContentDistance("efficientnet_lite0", None, None)(a, b)
    expected = distance(EfficientNetPerceptual(CPU, torch.float64), a, b)
    torch.testing.assert_close(found, expected)
    assert found.dtype == torch.float64 and found.min() > 0.5


def test_type_and_gradient_follow_the_pictures() -> None:
    measure = ContentDistance("efficientnet_lite0", None, None)
    a, b = pictures(2, 1, 32), pictures(2, 1, 32, seed=1)
    precise = measure(a, b)
    torch.testing.assert_close(measure(a.float(), b.float()).double(), precise, rtol=1e-4, atol=0)
    torch.testing.assert_close(measure(a, b), precise)  # back to float64
    torch.testing.assert_close(measure(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)), precise)
    a.requires_grad_(True)
    b.requires_grad_(True)
    measure(a, b).sum().backward()
    assert a.grad is not None and a.grad.abs().max() > 0 and b.grad is None
    assert (measure(b, b) == 0).all()


def test_vgg19_is_the_papers() -> None:
    state = vgg_state(content._STAGES)
    network = VGG19Features(state).double()
    images = pictures(1, 3, 32)
    expected = conv5_4(state, images)
    assert expected.shape == (1, 512, 2, 2) and expected.min() < 0  # before the activation
    torch.testing.assert_close(network(images), expected)
    # Ledig et al., equation 5, of features divided by 12.75
    other = pictures(1, 3, 32, seed=1)
    apart = (network.features(images) - network.features(other)).square().sum(1)
    maps = (expected - conv5_4(state, other)) / 12.75
    torch.testing.assert_close(apart, maps.square().mean().view(1))


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_weights_come_from_a_file(thin: dict[str, Tensor], tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"vgg19{ending}"
    if ending == ".pth":
        torch.save(thin, path)
    else:
        save_file(thin, path)
    a, b = pictures(2, 3, 32), pictures(2, 3, 32, seed=1)
    found = ContentDistance("vgg19", str(path), digest(path))(a, b)
    maps = (conv5_4(thin, a) - conv5_4(thin, b)) / 12.75
    torch.testing.assert_close(found, maps.square().mean((1, 2, 3)))


def test_weights_come_from_a_url_once(
    thin: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    path = tmp_path / "vgg19.pth"
    torch.save(thin, path)
    sha256 = digest(path)
    measure = ContentDistance("vgg19", path.as_uri(), sha256)
    assert not (tmp_path / "cache").exists()  # nothing is opened before it is used
    measure.prepare(CPU, torch.float32)
    path.unlink()
    again = ContentDistance("vgg19", path.as_uri(), sha256)
    a, b = pictures(1, 3, 16).float(), pictures(1, 3, 16, seed=1).float()
    assert torch.equal(again(a, b), measure(a, b))


def refusal(path: Path, sha256: str | None = None) -> str:
    with pytest.raises(UserError) as caught:
        ContentDistance("vgg19", str(path), sha256 or digest(path)).prepare(CPU, torch.float32)
    return str(caught.value)


class Whole(nn.Module):
    """A module saved whole is code; it must not run."""

    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("ran",)


def test_other_files_are_refused(thin: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "vgg19.pth"
    assert refusal(path, "0" * 64).startswith("family.content_weights: ")
    torch.save(thin, path)
    assert "`family.content_sha256` if you trust this one" in refusal(path, "0" * 64)

    name = "features.28.bias"
    torch.save({key: value for key, value in thin.items() if key != name}, path)
    assert f"{name} is missing, expected is [6]" in refusal(path)
    torch.save(thin | {name: torch.zeros(7)}, path)
    assert f"{name} is [7], expected is [6]: not the state dict of torch" in refusal(path)
    torch.save([torch.zeros(1)], path)
    assert "holds no state dict, but a list" in refusal(path)
    for junk in (b"", b"no weights at all", b"PK\x03\x04 half a zip"):
        path.write_bytes(junk)
        assert "holds no tensors alone; save the network's `state_dict()`" in refusal(path)
    torch.save(Whole(), path)
    assert "holds no tensors alone" in refusal(path)
    safe = tmp_path / "vgg19.safetensors"
    safe.write_bytes(b"no weights at all")
    assert "holds no tensors alone" in refusal(safe)


def test_torchvision_is_asked_where_it_can_be_imported(
    thin: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = ContentDistance("vgg19_torchvision", None, None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match=r"cannot import torchvision .* use efficientnet_lite0"):
        measure.prepare(CPU, torch.float32)

    def get_state_dict(check_hash: bool) -> dict[str, Tensor]:
        assert check_hash
        return thin

    models = types.ModuleType("torchvision.models")
    published = types.SimpleNamespace(get_state_dict=get_state_dict)
    models.VGG19_Weights = types.SimpleNamespace(IMAGENET1K_V1=published)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.models", models)
    a, b = pictures(2, 3, 32), pictures(2, 3, 32, seed=1)
    maps = (conv5_4(thin, a) - conv5_4(thin, b)) / 12.75
    torch.testing.assert_close(measure(a, b), maps.square().mean((1, 2, 3)))


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"vgg19 needs `family\.content_weights`"):
        ContentDistance("vgg19", "vgg19.pth", None)
    with pytest.raises(UserError, match=r"leave `family\.content_weights`"):
        ContentDistance("efficientnet_lite0", None, "0" * 64)
    with pytest.raises(UserError, match="multiple of 32 pixels, data"):
        ContentDistance("efficientnet_lite0", None, None).check(48)
    ContentDistance("vgg19_torchvision", None, None).check(48)
    with pytest.raises(UserError, match="multiple of 16 pixels, data"):
        ContentDistance("vgg19_torchvision", None, None).check(8)
