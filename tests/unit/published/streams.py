"""Files as StyleGAN2-ADA publishes them, made in a moment: for tests of the reader.

The pickles have the published structure: every module is a call of a function by name, with the
class's name, source code and attributes. Function and mapping are stand-ins, which are importable
only while a stream is written.
"""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

GOLDEN = Path(__file__).parents[2] / "golden" / "stylegan2_32.safetensors"
BUFFERS = ("noise_const", "w_avg", "resample_filter")
Tensors = dict[str, Tensor]


class EasyDict(dict[str, Any]):
    """A mapping whose class the stream names."""


class Stored:
    """Pickles itself as a published module does."""

    def __init__(self, class_name: str, **attributes: Any) -> None:
        self.class_name = class_name
        self.state: dict[str, Any] = {
            "training": False,
            "_parameters": OrderedDict(),
            "_buffers": OrderedDict(),
            "_non_persistent_buffers_set": set(),
            "_backward_hooks": OrderedDict(),
            "_modules": OrderedDict(),
            "_init_args": (),
            "_init_kwargs": EasyDict(),
            **attributes,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        meta = EasyDict(
            type="class",
            version=6,
            module_src="raise SystemExit('source code in a file was run')",
            class_name=self.class_name,
            state=self.state,
        )
        return rebuild, (meta,)


def rebuild(meta: Any) -> None:
    raise AssertionError("the stream was executed")


rebuild.__module__, rebuild.__qualname__ = (
    "torch_utils.persistence",
    "_reconstruct_persistent_obj",
)
EasyDict.__module__ = "dnnlib.util"


@contextmanager
def importable() -> Iterator[None]:
    """Pickle writes a name only if it can import it."""
    modules = {
        name: ModuleType(name)
        for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    }
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = rebuild  # type: ignore[attr-defined]
    modules["dnnlib.util"].EasyDict = EasyDict  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def dumped(value: Any, protocol: int = 4) -> bytes:
    with importable():
        return pickle.dumps(value, protocol)


def module(class_name: str, tensors: Tensors, **attributes: Any) -> Stored:
    """A tree of modules for tensors with dotted names."""
    root = Stored(class_name, **attributes)
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        node = root
        for part in path:
            node = node.state["_modules"].setdefault(part, Stored("Layer"))
        if last in BUFFERS:
            node.state["_buffers"][last] = tensor
        else:
            node.state["_parameters"][last] = torch.nn.Parameter(tensor, requires_grad=False)
            node.state["_parameters"].setdefault("absent", None)
            node.state["weight_gain"] = np.float64(0.125)
    return root


def golden() -> dict[str, Tensors]:
    """G and D of the reference file."""
    parts: dict[str, Tensors] = {"G": {}, "D": {}}
    with safe_open(GOLDEN, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - not a dictionary
            network, _, name = key.partition(".")
            if network in parts:
                parts[network][name] = file.get_tensor(key)
    return parts


def network(
    seed: int = 0, classes: int = 0, residual: bool = True, top: int = 16
) -> dict[str, Tensors]:
    """G and D for `top` pixels, a few channels wide, with the published names and shapes."""
    z, w = 6, 5
    levels = [2**k for k in range(2, top.bit_length())]
    width = {r: {4: 8, 8: 7, 16: 4}.get(r, 2) for r in levels}
    g: dict[str, tuple[int, ...]] = {"mapping.w_avg": (w,)}
    d: dict[str, tuple[int, ...]] = {}
    if classes:
        g |= {"mapping.embed.weight": (w, classes), "mapping.embed.bias": (w,)}
        d |= {"mapping.embed.weight": (8, classes), "mapping.embed.bias": (8,)}
    for i in range(2):
        g |= {f"mapping.fc{i}.bias": (w,)}
        g |= {f"mapping.fc{i}.weight": (w, w if i else z + (w if classes else 0))}
        if classes:
            d |= {f"mapping.fc{i}.bias": (8,), f"mapping.fc{i}.weight": (8, 8)}
    g["synthesis.b4.const"] = (8, 4, 4)
    for r, c in width.items():
        below = width.get(r // 2, 0)
        block = f"synthesis.b{r}"
        for conv, inputs in (("conv0", below), ("conv1", c)):
            if not inputs:
                continue
            g |= {
                f"{block}.{conv}.weight": (c, inputs, 3, 3),
                f"{block}.{conv}.bias": (c,),
                f"{block}.{conv}.noise_strength": (),
                f"{block}.{conv}.noise_const": (r, r),
                f"{block}.{conv}.affine.weight": (inputs, w),
                f"{block}.{conv}.affine.bias": (inputs,),
            }
        g |= {
            f"{block}.torgb.weight": (1, c, 1, 1),
            f"{block}.torgb.bias": (1,),
            f"{block}.torgb.affine.weight": (c, w),
            f"{block}.torgb.affine.bias": (c,),
        }
        if below:
            d |= {
                f"b{r}.conv0.weight": (c, c, 3, 3),
                f"b{r}.conv0.bias": (c,),
                f"b{r}.conv1.weight": (below, c, 3, 3),
                f"b{r}.conv1.bias": (below,),
            }
            if residual:
                d[f"b{r}.skip.weight"] = (below, c, 1, 1)
    d |= {
        f"b{top}.fromrgb.weight": (width[top], 1, 1, 1),
        f"b{top}.fromrgb.bias": (width[top],),
        "b4.conv.weight": (8, 9, 3, 3),
        "b4.conv.bias": (8,),
        "b4.fc.weight": (8, 128),
        "b4.fc.bias": (8,),
        "b4.out.weight": (8 if classes else 1, 8),
        "b4.out.bias": (8 if classes else 1,),
    }
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    random = torch.Generator().manual_seed(seed)
    parts = {
        "G": {name: torch.randn(shape, generator=random) for name, shape in g.items()},
        "D": {name: torch.randn(shape, generator=random) for name, shape in d.items()},
    }
    parts["G"]["synthesis.b8.conv0.resample_filter"] = torch.outer(taps, taps) / 64
    return parts


def published(parts: dict[str, Tensors], protocol: int = 4, **attributes: Any) -> bytes:
    """The pickle of a published file; `attributes` go to the discriminator."""
    return dumped(
        {
            "training_set_kwargs": EasyDict(path="pictures.zip", use_labels=False),
            "augment_pipe": module("AugmentPipe", {"p": torch.tensor(0.4)}, xflip=1.0),
            "G": module("Generator", parts["G"]),
            "D": module("Discriminator", parts["D"], **attributes),
            **({"G_ema": module("Generator", parts["G_ema"])} if "G_ema" in parts else {}),
        },
        protocol,
    )
