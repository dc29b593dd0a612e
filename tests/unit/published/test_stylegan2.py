"""Published StyleGAN2 networks: the same tensors from either kind of file, and what they say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gan_train.adversary import ImageShape
from gan_train.errors import UserError
from gan_train.families.stylegan.build import StyleGANConfig
from gan_train.published import stylegan2
from gan_train.published.stylegan2 import Published, Settings, load
from tests.unit.published.streams import (
    GOLDEN,
    EasyDict,
    Stored,
    Tensors,
    dumped,
    golden,
    module,
    network,
    published,
)

Parts = dict[str, Tensors]


def from_pickle(folder: Path, data: bytes) -> Published:
    path = folder / "networks.pkl"
    path.write_bytes(data)
    return load(path)


def from_safetensors(folder: Path, parts: Parts, **metadata: str) -> Published:
    path = folder / "networks.safetensors"
    flat = {
        f"{part}.{name}": t.clone()
        for part, tensors in parts.items()
        for name, t in tensors.items()
    }
    save_file(flat, path, metadata)
    return load(path)


def assert_same(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def without_filters(tensors: Tensors) -> Tensors:
    return {name: t for name, t in tensors.items() if not name.endswith("resample_filter")}


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_a_pickle_and_safetensors_hold_the_same_bits(tmp_path: Path, protocol: int) -> None:
    parts = golden()
    parts["G_ema"] = {name: t + 1 if "weight" in name else t for name, t in parts["G"].items()}
    a = from_pickle(tmp_path, published(parts, protocol))
    b = from_safetensors(tmp_path, parts, mbstd_group="4")
    for found in (a, b):
        assert_same(found.generator, without_filters(parts["G"]))
        assert_same(found.averaged, without_filters(parts["G_ema"]))
        assert_same(found.discriminator, without_filters(parts["D"]))
    assert a.architecture == b.architecture
    assert a.settings == b.settings == Settings()


def test_the_architecture_of_the_reference_networks() -> None:
    found = load(GOLDEN)
    a = found.architecture
    assert (a.resolution, a.image_channels, a.z_dim, a.w_dim) == (32, 3, 64, 64)
    assert a.channels == {4: 64, 8: 64, 16: 64, 32: 32}
    assert (a.mapping_layers, a.classes, a.class_mapping_layers, a.residual) == (8, 0, 0, True)
    assert found.image_shape() == ImageShape(3, 32)
    assert_same(found.averaged, found.generator)


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("residual", [True, False])
def test_the_recipe_builds_networks_with_these_tensors(
    tmp_path: Path, classes: int, residual: bool
) -> None:
    found = from_pickle(tmp_path, published(network(classes=classes, residual=residual)))
    shape = found.image_shape()
    assert shape == ImageShape(1, 16, ("0", "1", "2")[:classes])
    adversary = StyleGANConfig.model_validate(found.family()).build(shape, 8)
    for net, tensors in (
        (adversary.generator, found.generator),
        (adversary.discriminator, found.discriminator),
    ):
        assert {k: v.shape for k, v in net.state_dict().items()} == {
            k: v.shape for k, v in tensors.items()
        }


def test_classes_are_named() -> None:
    found = load(GOLDEN)
    with pytest.raises(UserError, match="names 2 different classes; the networks have 0"):
        found.image_shape(("a", "b"))


def test_names_of_classes_are_counted(tmp_path: Path) -> None:
    found = from_pickle(tmp_path, published(network(classes=3)))
    assert found.image_shape(("a", "b", "c")).classes == ("a", "b", "c")
    for names in (("a", "b"), ("a", "b", "b"), ()):
        with pytest.raises(UserError, match="the networks have 3"):
            found.image_shape(names)


def test_halves_become_floats(tmp_path: Path) -> None:
    parts = network()
    halves = {
        part: {k: v if "filter" in k else v.half() for k, v in tensors.items()}
        for part, tensors in parts.items()
    }
    found = from_pickle(tmp_path, published(halves))
    assert {t.dtype for t in found.generator.values()} == {torch.float32}
    name = "synthesis.b8.conv0.weight"
    assert torch.equal(found.generator[name], parts["G"][name].half().float())


def test_a_tensor_under_many_names_is_converted_once() -> None:
    """Names cost a stream a few bytes each, and would cost us a tensor each."""
    found = stylegan2._weights(dict.fromkeys(("a", "b", "c"), torch.ones(5).half()))
    assert len({tensor.data_ptr() for tensor in found.values()}) == 1
    assert found.keys() == {"a", "b", "c"} and torch.equal(found["c"], torch.ones(5))


# ---- settings ----------------------------------------------------------------------------------


def with_settings(folder: Path, change: Callable[[Stored, Stored], None]) -> Published:
    """The small networks after `change(G, D)`."""
    parts = network()
    g, d = module("Generator", parts["G"]), module("Discriminator", parts["D"])
    change(g, d)
    return from_pickle(folder, dumped({"G": g, "D": d}))


def layer(root: Stored, name: str) -> dict[str, Any]:
    for part in name.split("."):
        root = root.state["_modules"][part]
    return root.state


def test_settings_come_from_attributes_and_arguments(tmp_path: Path) -> None:
    def change(g: Stored, d: Stored) -> None:
        kwargs = EasyDict(conv_clamp=256, activation="lrelu", resample_filter=[1, 3, 3, 1])
        g.state["_init_kwargs"] = EasyDict(
            mapping_kwargs=EasyDict(num_layers=2), synthesis_kwargs=kwargs
        )
        layer(g, "synthesis.b8.conv0")["conv_clamp"] = np.float64(256)
        layer(g, "mapping.fc0")["_init_kwargs"] = EasyDict(lr_multiplier=0.02)
        layer(g, "synthesis.b8.conv0.affine")["_init_kwargs"] = EasyDict(lr_multiplier=1)
        layer(g, "synthesis.b8.conv0.affine")["activation"] = "linear"
        d.state["_init_kwargs"] = EasyDict(
            conv_clamp=256, epilogue_kwargs=EasyDict(mbstd_group_size=8)
        )
        layer(d, "b8.skip")["conv_clamp"] = None  # never clamped
        d.state["_modules"]["b4"].state["_modules"]["mbstd"] = Stored("Layer", group_size=8)

    found = with_settings(tmp_path, change)
    assert found.settings == Settings(mbstd_group=8, mapping_lr=0.02, clamp=256.0)
    family = found.family()
    assert (family["mbstd_group"], family["mapping_lr"], family["clamp"]) == (8, 0.02, 256.0)


def test_settings_come_from_metadata(tmp_path: Path) -> None:
    found = from_safetensors(tmp_path, network(), mbstd_group="2", mapping_lr="0.1", clamp="256")
    assert found.settings == Settings(2, 0.1, 256.0)
    with pytest.raises(UserError, match="metadata holds no number"):
        from_safetensors(tmp_path, network(), mbstd_group="two")


@pytest.mark.parametrize(
    ("where", "settings", "what"),
    [
        ("synthesis.b8.conv0", {"activation": "relu"}, "activation is relu"),
        ("synthesis.b8.conv0", {"activation": ["x"] * 3}, "activation is a list"),
        ("synthesis.b8.conv0", {"conv_clamp": 0}, "conv_clamp is 0"),
        ("synthesis.b8.conv0", {"conv_clamp": "256"}, "conv_clamp is 256"),
        ("synthesis.b8.conv0", {"conv_clamp": float("nan")}, "conv_clamp is nan"),
        ("synthesis.b8", {"_init_kwargs": {"resample_filter": [1, 2, 1]}}, "resample_filter"),
        ("synthesis.b8", {"_init_kwargs": {"resample_filter": None}}, "resample_filter"),
        ("synthesis.b8", {"_init_kwargs": 5}, "no mapping"),
        ("mapping.fc0", {"_init_kwargs": {"lr_multiplier": None}}, "lr_multiplier is None"),
        ("mapping.fc0", {"group_size": 0}, "minibatch standard deviation is 0"),
        ("mapping.fc0", {"group_size": None}, "minibatch standard deviation is None"),
    ],
)
def test_settings_that_this_project_does_not_have_are_refused(
    tmp_path: Path, where: str, settings: dict[str, Any], what: str
) -> None:
    with pytest.raises(UserError, match=what):
        with_settings(tmp_path, lambda g, d: layer(g, where).update(settings))


def test_layers_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    def change(g: Stored, d: Stored) -> None:
        layer(g, "synthesis.b8.conv0")["conv_clamp"] = 256
        layer(d, "b8.conv0")["conv_clamp"] = None

    with pytest.raises(UserError, match="differ in conv_clamp: 256, None"):
        with_settings(tmp_path, change)


# ---- other networks ----------------------------------------------------------------------------


def removed(part: str, *names: str) -> Callable[[Parts], None]:
    def change(parts: Parts) -> None:
        for name in names:
            del parts[part][name]

    return change


def added(part: str, name: str, *shape: int) -> Callable[[Parts], None]:
    return lambda parts: parts[part].update({name: torch.randn(shape)})


def scaled(part: str, name: str, factor: float) -> Callable[[Parts], None]:
    return lambda parts: parts[part][name].mul_(factor)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (added("G", "synthesis.input.weight", 2, 2), "a StyleGAN3"),
        (added("G", "synthesis.L0_36_512.weight", 2, 2), "a StyleGAN3"),
        (removed("G", "synthesis.b4.const"), "b4 of the generator or discriminator is missing"),
        (removed("G", "synthesis.b8.conv1.weight"), r"resolutions \[4, 16\]"),
        (added("G", "synthesis.b32.conv1.weight", 4, 4, 3, 3), "other resolutions than G's"),
        (removed("G", "synthesis.b4.torgb.weight"), "architecture is not `skip`"),
        (added("G", "synthesis.b8.skip.weight", 7, 8, 1, 1), "architecture is not `skip`"),
        (added("D", "b8.fromrgb.weight", 7, 1, 1, 1), "neither `resnet` nor `orig`"),
        (removed("D", "b8.skip.weight"), "residual blocks and others"),
        (added("D", "b8.conv0.weight", 6, 7, 3, 3), "at 8 pixels G has 7 channels and D has 6"),
        (added("D", "b4.conv.weight", 8, 8, 3, 3), "does not give one channel"),
        (added("G", "synthesis.b8.conv1.weight", 7, 6, 3, 3), "no square 3x3"),
        (added("G", "synthesis.b8.conv1.weight", 7), "has not 4 dimensions"),
        (added("G", "synthesis.b16.torgb.weight", 4, 4, 1, 1), "4 channels; allowed: 1 or 3"),
        (removed("G", "mapping.w_avg"), "mapping.w_avg is missing"),
        (added("G", "mapping.embed.weight", 5, 3), "knows classes, the other does not"),
        (added("G", "mapping.fc0.weight", 5, 9000), "width is not within"),
        (scaled("G", "synthesis.b8.conv0.resample_filter", 2), "not the filter"),
        (added("G", "synthesis.b8.conv0.resample_filter", 6, 6), "not the filter"),
        (scaled("D", "b4.fc.bias", float("inf")), "no finite numbers"),
    ],
)
def test_other_networks_are_refused(
    tmp_path: Path, change: Callable[[Parts], None], what: str
) -> None:
    parts = copy.deepcopy(network())
    change(parts)
    for make in (
        lambda: from_pickle(tmp_path, published(parts)),
        lambda: from_safetensors(tmp_path, parts),
    ):
        with pytest.raises(UserError, match=what) as refusal:
            make()
        assert "networks.pkl" in str(refusal.value) or "safetensors" in str(refusal.value)


def test_files_without_both_networks_are_refused(tmp_path: Path) -> None:
    parts = network()
    g = module("Generator", parts["G"])
    for value, what in (
        ({"G": g}, "it has no D"),
        ({"G": g, "D": None}, "it has no D"),
        ({"G": g, "D": g}, "its D is a Generator, not a Discriminator"),
        ({"G": {"a": 1}, "D": g}, "its G is a dict, not a Generator"),
        ([g], "no dictionary with G and D"),
    ):
        with pytest.raises(UserError, match=what):
            from_pickle(tmp_path, dumped(value))
    with pytest.raises(UserError, match="it has no D"):
        from_safetensors(tmp_path, {"G": parts["G"], "other": parts["D"]})
    with pytest.raises(UserError, match=r"int64, no real numbers"):
        from_safetensors(
            tmp_path, {"G": parts["G"] | {"x": torch.ones(1, dtype=torch.int64)}, "D": parts["D"]}
        )


def test_what_is_left_out_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from_safetensors(tmp_path, network() | {"G_old": {"x": torch.ones(1)}})
    assert "left out: G_old.*" in caplog.text


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = published(network())
    for length in range(0, len(whole), len(whole) // 40):
        with pytest.raises(UserError, match=r"networks\.pkl cannot be imported"):
            from_pickle(tmp_path, whole[:length])
    from_safetensors(tmp_path, network())
    path = tmp_path / "networks.safetensors"
    data = path.read_bytes()
    for cut in (b"", data[:4], data[:200], data[:-1], data + b"x"):
        path.write_bytes(cut)
        with pytest.raises(UserError, match="no whole safetensors file"):
            load(path)
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "absent.pkl")
    with pytest.raises(UserError, match="cannot be imported"):
        from_pickle(tmp_path, b"PK\x03\x04 a zip file")


def test_networks_of_the_first_release_are_refused_by_name(tmp_path: Path) -> None:
    """TensorFlow's pickles hold classes of their own."""
    data = b"\x80\x03(cdnnlib.tflib.network\nNetwork\n)\x81}bt."
    with pytest.raises(UserError, match=r"names dnnlib\.tflib\.network\.Network") as refusal:
        from_pickle(tmp_path, data)
    assert "StyleGAN2-ADA for PyTorch" in str(refusal.value)
