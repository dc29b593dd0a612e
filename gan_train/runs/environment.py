"""Says on what a training runs, as far as it may decide about the last bits of its weights."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from gan_train.runs.runtime import Runtime, device_name

Environment = dict[str, str]

_PACKAGES = ("gan-train", "torch", "numpy", "pillow", "safetensors", "webdataset", "ray")
_UNITS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "bf16", "sve")
"""Units of a processor by which PyTorch and its libraries choose how they compute."""
_CHOICES = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR")
"""Variables by which a user restricts that choice."""


def environment(runtime: Runtime, precision: str) -> Environment:
    """The environment of a training: that of this worker's `machine`, threads, number of workers
    and format of numbers. Machines of other workers are not told."""
    return machine(runtime.device) | {
        "threads": str(torch.get_num_threads()),
        "workers": str(runtime.world_size),
        "precision": precision,
    }


def machine(device: torch.device) -> Environment:
    """The device and what it computes with, and the versions of packages."""
    found = {
        "device": device_name(device),
        "instructions": instructions(),
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # an engine that is not installed, or a package in a folder
            continue
    return found


def instructions() -> str:
    """What PyTorch computes with on this processor: `AVX512: avx2 avx512f avx512_bf16`."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # another system than Linux
        text = ""
    lines = (line.partition(":") for line in text.splitlines())
    flags = {f for key, _, v in lines if key.strip() in ("flags", "Features") for f in v.split()}
    units = " ".join(unit for unit in _UNITS if unit in flags)
    chosen = "".join(f" {name}={os.environ[name]}" for name in _CHOICES if name in os.environ)
    return f"{torch.backends.cpu.get_cpu_capability()}: {units}{chosen}"


def differences(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """What is otherwise in a second environment, by key: both values, `none` where there is none.
    The choices of a training are left out where the second is that of a `machine`."""
    choices = {"threads", "workers", "precision"} - other.keys()
    return {
        key: (one.get(key, "none"), other.get(key, "none"))
        for key in dict.fromkeys((*one, *other))
        if key not in choices and one.get(key) != other.get(key)
    }
