"""Reads files of published StyleGAN2 networks, and describes the networks as a family's settings.

There are two kinds of file: the pickles of StyleGAN2-ADA for PyTorch (dictionaries of the modules
G, D and G_ema), and safetensors whose tensors have the same names after `G.`, `D.` and `G_ema.`.
The architecture is read from the tensors' shapes. Other settings are read from the modules'
attributes and constructor arguments, or from the metadata of the safetensors file.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gan_train.adversary import ImageShape
from gan_train.errors import UserError
from gan_train.published.pickle_stream import StreamError
from gan_train.published.torch_values import PublishedModule, read_modules

log = logging.getLogger(__name__)

MAX_WIDTH = 8192  # of any layer
MAX_CLASSES = 100_000
TAPS = (1.0, 3.0, 3.0, 1.0)
"""The low-pass filter with which the networks resample."""
ACTIVATIONS = ("lrelu", "linear")

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """The settings that the tensors' shapes do not show. The defaults are those of the published
    networks."""

    mbstd_group: int = 4
    mapping_lr: float = 0.01
    clamp: float | None = None


@dataclass(frozen=True)
class Architecture:
    """The sizes and kinds of layers that the tensors' shapes and names show."""

    resolution: int
    image_channels: int
    channels: dict[int, int]  # by resolution, the same in both networks
    z_dim: int
    w_dim: int
    classes: int  # 0: unconditional
    mapping_layers: int
    class_mapping_layers: int  # of D's mapping of classes; 0: unconditional
    residual: bool  # D's blocks


@dataclass(frozen=True)
class Published:
    """The tensors of both networks and of the generator's moving average, by published name."""

    generator: Tensors
    averaged: Tensors
    discriminator: Tensors
    settings: Settings
    architecture: Architecture

    def family(self) -> dict[str, Any]:
        """The `family` part of a recipe for these networks."""
        a = self.architecture
        return {
            "name": "stylegan",
            "generation": 2,
            "conditional": a.classes > 0,
            "z_dim": a.z_dim,
            "w_dim": a.w_dim,
            "mapping_layers": a.mapping_layers,
            **(
                {"class_mapping_layers": a.class_mapping_layers, "truncate_to": "all"}
                if a.classes
                else {}
            ),
            "mapping_lr": self.settings.mapping_lr,
            "channels": a.channels,
            "discriminator": "resnet" if a.residual else "plain",
            "mbstd_group": self.settings.mbstd_group,
            "clamp": self.settings.clamp,
        }

    def image_shape(self, classes: tuple[str, ...] | None = None) -> ImageShape:
        """The shape of the networks' images. Classes are called 0, 1, ... unless they are named.

        Raises UserError when there are not as many names as classes, or a name comes twice.
        """
        count = self.architecture.classes
        names = tuple(str(i) for i in range(count)) if classes is None else classes
        if len(names) != count or len(set(names)) != count:
            raise UserError(
                f"--classes names {len(set(names))} different classes; the networks have {count}"
            )
        return ImageShape(self.architecture.image_channels, self.architecture.resolution, names)


def load(path: Path) -> Published:
    """Read a `.pkl` or `.safetensors` file. No code in it is executed.

    Raises UserError for a damaged file, for networks that are no StyleGAN2, and for a variant of
    StyleGAN2 that this project does not have.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a StyleGAN2 .pkl or .safetensors file")
    try:
        parts, settings = (
            _from_safetensors(path) if path.suffix == ".safetensors" else _from_pickle(path)
        )
        for part in parts.values():
            _refuse_other_filters(part)
        tensors = {name: _weights(part) for name, part in parts.items()}
        architecture = architecture_of(tensors["G"], tensors["D"])
    except StreamError as error:
        raise UserError(
            f"{path} cannot be imported: {error}. What can be: networks of StyleGAN2-ADA for "
            "PyTorch, as its .pkl, or as .safetensors with the names G.*, D.* and G_ema.*"
        ) from error
    averaged = tensors.get("G_ema", tensors["G"])
    return Published(tensors["G"], averaged, tensors["D"], settings, architecture)


# ---- files -------------------------------------------------------------------------------------


def _from_safetensors(path: Path) -> tuple[dict[str, Tensors], Settings]:
    parts: dict[str, Tensors] = {}
    left_out = set()
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            for key in file.keys():  # noqa: SIM118 - not a dictionary
                network, _, name = key.partition(".")
                if network in ("G", "D", "G_ema"):
                    parts.setdefault(network, {})[name] = file.get_tensor(key)
                else:
                    left_out.add(network)
    except SafetensorError as error:
        raise StreamError(f"it is no whole safetensors file ({error})") from error
    if left_out:
        log.warning("%s: left out: %s", path, ", ".join(f"{name}.*" for name in sorted(left_out)))
    _need_both(parts)
    settings = Settings()
    try:
        if "mbstd_group" in about:
            settings = replace(settings, mbstd_group=int(about["mbstd_group"]))
        if "mapping_lr" in about:
            settings = replace(settings, mapping_lr=float(about["mapping_lr"]))
        if "clamp" in about:
            settings = replace(settings, clamp=float(about["clamp"]))
    except ValueError as error:
        raise StreamError(f"its metadata holds no number ({error})") from error
    return parts, settings


def _from_pickle(path: Path) -> tuple[dict[str, Tensors], Settings]:
    content = read_modules(path)
    if not isinstance(content, dict):
        raise StreamError("it holds no dictionary with G and D")
    modules: dict[str, PublishedModule] = {}
    for network, class_name in (("G", "Generator"), ("D", "Discriminator"), ("G_ema", "Generator")):
        module = content.get(network)
        if module is None:
            continue
        if not isinstance(module, PublishedModule) or module.class_name != class_name:
            found = getattr(module, "class_name", type(module).__name__)
            raise StreamError(f"its {network} is a {found}, not a {class_name}")
        modules[network] = module
    _need_both(modules)
    parts = {network: module.state_dict() for network, module in modules.items()}
    return parts, _settings(modules)


def _need_both(parts: Mapping[str, Any]) -> None:
    for network in ("G", "D"):
        if network not in parts:
            raise StreamError(f"it has no {network}")


def _settings(modules: Mapping[str, PublishedModule]) -> Settings:
    """The settings that the attributes and constructor arguments of all modules agree on."""
    facts: dict[str, list[Any]] = {}
    for network, root in modules.items():
        for prefix, module in root.named_modules():
            for key, value in _arguments(module):
                if key == "lr_multiplier" and "mapping" not in f"{network}.{prefix}":
                    continue  # in other layers it is always 1
                if key == "conv_clamp" and prefix.endswith(".skip"):
                    continue  # the skip convolution of a residual block is never clamped
                facts.setdefault(key, []).append(value)
    for value in facts.get("activation", []):
        if value not in ACTIVATIONS:
            raise StreamError(f"a layer's activation is {_shown(value)}; known: lrelu, linear")
    for value in facts.get("resample_filter", []):
        if type(value) is not list or [_number(tap) for tap in value] != list(TAPS):
            raise StreamError("a layer's resample_filter is not [1, 3, 3, 1]")
    default = Settings()
    group = _agreed(facts, ("group_size", "mbstd_group_size"), default.mbstd_group)
    rate = _agreed(facts, ("lr_multiplier",), default.mapping_lr)
    clamp = _agreed(facts, ("conv_clamp",), default.clamp)
    if type(group) is not int or not 1 <= group <= MAX_WIDTH:
        raise StreamError(f"the group of its minibatch standard deviation is {_shown(group)}")
    return Settings(
        group,
        _positive("lr_multiplier", rate),
        None if clamp is None else _positive("conv_clamp", clamp),
    )


_KEPT_ARGUMENTS = (
    "activation",
    "resample_filter",
    "group_size",
    "mbstd_group_size",
    "lr_multiplier",
    "conv_clamp",
)


def _arguments(module: PublishedModule) -> Iterator[tuple[str, Any]]:
    """The attributes and constructor arguments of one module that its tensors' shapes do not
    show."""
    kwargs = module.state.get("_init_kwargs", {})
    groups = [module.state, kwargs]
    if isinstance(kwargs, dict):  # arguments that the module passes to its parts
        groups += [value for key, value in kwargs.items() if str(key).endswith("_kwargs")]
    for group in groups:
        if not isinstance(group, dict):
            raise StreamError(f"the constructor arguments of a {module.class_name} are no mapping")
        for key in _KEPT_ARGUMENTS:
            value = group.get(key)
            if key in group and not isinstance(value, Tensor):  # a buffer has such a name, too
                yield key, value


def _agreed(facts: Mapping[str, list[Any]], names: tuple[str, ...], default: Any) -> Any:
    """The value that all modules give under these names; the default if none gives one. Raises
    StreamError where modules differ."""
    values = [value for name in names for value in facts.get(name, [])]
    different = set(map(_shown, values))
    if len(different) > 1:
        raise StreamError(f"its layers differ in {names[0]}: {', '.join(sorted(different))}")
    return values[0] if values else default


def _shown(value: Any) -> str:
    """The value as text for a message. A container is shown by its type, as it could be endless."""
    if type(value) in (int, float):
        return f"{float(value)!r}".removesuffix(".0")
    if value is None or type(value) is bool:
        return str(value)
    return value[:40] if type(value) is str else f"a {type(value).__name__}"


def _number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) else None


def _positive(name: str, value: Any) -> float:
    number = _number(value)
    if number is None or not 0 < number < float("inf"):
        raise StreamError(f"its {name} is {_shown(value)}; allowed: numbers above 0")
    return number


# ---- tensors -----------------------------------------------------------------------------------


def _weights(part: Tensors) -> Tensors:
    """The tensors as float32, without the filters, which are constants and were checked before."""
    found = {name: tensor for name, tensor in part.items() if not name.endswith(_FILTER)}
    converted: dict[int, Tensor] = {}  # a tensor with several names is converted once
    for name, tensor in found.items():
        if id(tensor) in converted:
            continue
        if not tensor.is_floating_point():
            raise StreamError(f"{name} holds {tensor.dtype}, no real numbers")
        if not torch.isfinite(tensor).all():
            raise StreamError(f"{name} holds values that are no finite numbers")
        converted[id(tensor)] = tensor.to(torch.float32)
    return {name: converted[id(tensor)] for name, tensor in found.items()}


_FILTER = "resample_filter"


def _refuse_other_filters(part: Tensors) -> None:
    taps = torch.tensor(TAPS)
    expected = torch.outer(taps, taps) / 64
    for name, tensor in part.items():
        if name.endswith(_FILTER) and not (
            tensor.shape == expected.shape and torch.allclose(tensor.float(), expected)
        ):
            raise StreamError(f"{name} is not the filter [1, 3, 3, 1]")


# ---- architecture ------------------------------------------------------------------------------


def architecture_of(g: Tensors, d: Tensors) -> Architecture:
    """The architecture of a generator and a discriminator, from their tensors' names and shapes.

    Raises StreamError for networks of another architecture. The other shapes are checked when the
    tensors are loaded into networks of this project.
    """
    if any(re.match(r"synthesis\.(input|L\d+)", name) for name in g):
        raise StreamError("it holds a StyleGAN3")
    levels = _levels(g, "synthesis.b", ".conv1.weight")
    if "synthesis.b4.const" not in g or "b4.out.weight" not in d:
        raise StreamError("it holds no StyleGAN2: b4 of the generator or discriminator is missing")
    if _levels(d, "b", ".conv1.weight") != levels[1:]:
        raise StreamError(f"the discriminator is for other resolutions than G's {levels}")
    top = levels[-1]
    for level in levels:
        if f"synthesis.b{level}.torgb.weight" not in g or f"synthesis.b{level}.skip.weight" in g:
            raise StreamError("G's architecture is not `skip`: an image from each resolution")
        if (f"b{level}.fromrgb.weight" in d) != (level == top):
            raise StreamError("D's architecture is neither `resnet` nor `orig`")
    residual = {f"b{level}.skip.weight" in d for level in levels[1:]}
    if len(residual) != 1:
        raise StreamError("D has residual blocks and others")

    channels = {}
    for level in levels:
        width = _shape(g, f"synthesis.b{level}.conv1.weight", 4)[0]
        of_d = "b4.conv.weight" if level == 4 else f"b{level}.conv0.weight"
        if _shape(g, f"synthesis.b{level}.conv1.weight", 4) != (width, width, 3, 3):
            raise StreamError(f"synthesis.b{level}.conv1.weight is no square 3x3 convolution")
        if _shape(d, of_d, 4)[0] != width:
            raise StreamError(
                f"at {level} pixels G has {width} channels and D has {_shape(d, of_d, 4)[0]}; "
                "the same number is needed"
            )
        channels[level] = width
    if _shape(d, "b4.conv.weight", 4)[1] != channels[4] + 1:
        raise StreamError("D's minibatch standard deviation does not give one channel")
    image_channels = _shape(g, f"synthesis.b{top}.torgb.weight", 4)[0]
    if image_channels not in (1, 3):
        raise StreamError(f"its images have {image_channels} channels; allowed: 1 or 3")

    (w_dim,) = _shape(g, "mapping.w_avg", 1)
    classes = _shape(g, "mapping.embed.weight", 2)[1] if "mapping.embed.weight" in g else 0
    z_dim = _shape(g, "mapping.fc0.weight", 2)[1] - (w_dim if classes else 0)
    layers, class_layers = _mapping_layers(g), _mapping_layers(d)
    if (class_layers > 0) != (classes > 0):
        raise StreamError("one of G and D knows classes, the other does not")
    if min(z_dim, layers) < 1 or max(z_dim, w_dim, *channels.values()) > MAX_WIDTH:
        raise StreamError(f"a layer's width is not within 1 to {MAX_WIDTH}")
    if classes > MAX_CLASSES:
        raise StreamError(f"it has {classes} classes; allowed: at most {MAX_CLASSES}")
    return Architecture(
        top,
        image_channels,
        channels,
        z_dim,
        w_dim,
        classes,
        layers,
        class_layers,
        residual.pop(),
    )


def _levels(tensors: Tensors, before: str, after: str) -> list[int]:
    """The resolutions r for which there is a tensor `before` r `after`. Raises StreamError unless
    they are 4, 8, 16, ... or 8, 16, ..., up to 1024."""
    pattern = re.compile(re.escape(before) + r"([1-9]\d{0,3})" + re.escape(after))
    found = sorted(int(match[1]) for name in tensors if (match := pattern.fullmatch(name)))
    first = found[0] if found else 0
    if not found or found != [first << step for step in range(len(found))] or first not in (4, 8):
        raise StreamError(f"it holds no StyleGAN2: blocks of the resolutions {found}")
    if found[-1] > 1024:
        raise StreamError(f"it is for {found[-1]} pixels; allowed: at most 1024")
    return found


def _mapping_layers(tensors: Tensors) -> int:
    return sum(bool(re.fullmatch(r"mapping\.fc\d+\.weight", name)) for name in tensors)


def _shape(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in tensors or tensors[name].ndim != dimensions:
        raise StreamError(f"{name} is missing or has not {dimensions} dimensions")
    return tuple(tensors[name].shape)
