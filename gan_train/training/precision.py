"""Chooses the number format of a training: bfloat16 where the machine computes faster in it.

`settle` turns `train.precision: auto` into `bf16` or `float32`. It asks the processor or GPU for
units that compute in bfloat16, and then measures a convolution in both formats, because a processor
may name such a unit and have another library, a virtual machine or a setting forbid its use. Where
the units are missing, bfloat16 is imitated, and takes up to twenty times as long as float32.
"""

from __future__ import annotations

import logging
import time
from functools import cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from gan_train import recipes
from gan_train.config import Config
from gan_train.nn.collectives import any_worker, broadcast_text
from gan_train.runs import checkpoint
from gan_train.runs.runtime import Runtime

log = logging.getLogger(__name__)

PAYS_FROM = 1.2
"""bfloat16 is chosen where a convolution is at least so many times as fast in it as in float32."""
_CPU_UNITS = ("amx_bf16", "avx512_bf16", "bf16")  # x86, x86, and ARM
_AMPERE = (8, 0)  # the compute capability of the first GPUs with bfloat16
_REPEATS = 3


def settle(config: Config, runtime: Runtime) -> Config:
    """The configuration with a precision that is no longer `auto`, the same on all workers.

    A run that is resumed keeps the precision that its checkpoints record. If the configuration asks
    for `bf16` where that does not pay, it gets bf16, and a warning says how much slower that is.
    Collective.
    """
    wanted, device = config.train.precision, runtime.device
    if wanted == "auto":
        known = checkpoint.precision_of(runtime.run_dir) if runtime.rank == 0 else None
        if known := broadcast_text(known or "", device):
            log.info("precision %s: this run began with it", known)
            return recipes.change(config, {"train.precision": known})
        slow = any_worker(faster(device) == "float32", device)
        chosen = "float32" if slow else "bf16"
        log.info("precision %s: %s", chosen, explain(device))
        return recipes.change(config, {"train.precision": chosen})
    if wanted == "bf16" and faster(device) == "float32":
        log.warning(
            "train.precision is bf16, which does not pay here: %s. `train.precision=auto` takes "
            "bf16 only where it is faster",
            explain(device),
        )
    return config


def faster(device: torch.device) -> Literal["bf16", "float32"]:
    """The format in which the device computes faster: bf16 if it has a unit for it that pays."""
    pays = unit_of(device) is not None and bf16_gain(device) >= PAYS_FROM
    return "bf16" if pays else "float32"


def explain(device: torch.device) -> str:
    """In words, what the device has for bfloat16, and how fast a convolution is with it."""
    unit, gain = unit_of(device), bf16_gain(device)
    has = f"the device has {unit}" if unit else "the device has no unit for bfloat16"
    how = f"{gain:.1f} times as fast" if gain >= 1 else f"{1 / gain:.1f} times as slow"
    return f"{has}, and a convolution is {how} in bf16 as in float32"


def unit_of(device: torch.device) -> str | None:
    """The name of the device's unit for bfloat16; None where it names none."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"compute capability {major}.{minor}" if (major, minor) >= _AMPERE else None
    try:
        return unit_among(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:  # another system than Linux
        return None


def unit_among(cpuinfo: str) -> str | None:
    """The name of the unit for bfloat16 that every processor in the text of Linux's /proc/cpuinfo
    has; None where there is none."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    flags = [set(value.split()) for key, _, value in lines if key.strip() in ("flags", "Features")]
    shared = set.intersection(*flags) if flags else set()
    return next((unit for unit in _CPU_UNITS if unit in shared), None)


@cache
def bf16_gain(device: torch.device) -> float:
    """How many times as fast a convolution and its derivatives are in bfloat16 as in float32.

    The fastest of some repeats counts, each format in turn. On a CPU these are CPU seconds of one
    thread, so that other work does not decide. It takes a fraction of a second, also where bfloat16
    is imitated. A GPU gets many channels, as with few of them the launches of kernels would be
    measured: an H100 seemed to gain nothing from bfloat16 with 64.
    """
    if device.type != "cpu":
        return _gain(device, n=32, channels=256, side=64)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _gain(device, n=4, channels=64, side=32)
    finally:
        torch.set_num_threads(threads)


def _gain(device: torch.device, n: int, channels: int, side: int) -> float:
    """`bf16_gain`, measured on n images of this side with so many channels."""
    taken = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    cases = {}
    # drawn without torch's global generator, whose state belongs to the training
    random = torch.Generator().manual_seed(0)
    image, filters = (
        torch.randn(shape, generator=random).to(device, memory_format=torch.channels_last)
        for shape in ((n, channels, side, side), (channels, channels, 3, 3))
    )
    for kind in taken:
        cases[kind] = [t.to(kind, copy=True).requires_grad_() for t in (image, filters)]
    with torch.autocast(device.type, enabled=False), torch.enable_grad():
        for _ in range(1 + _REPEATS):  # the first time chooses kernels, and is never the fastest
            for kind, (x, weight) in cases.items():
                start = _now(device)
                F.conv2d(x, weight, padding=1).sum().backward()
                taken[kind] = min(taken[kind], _now(device) - start)
    return taken[torch.float32] / taken[torch.bfloat16]


def _now(device: torch.device) -> float:
    """CPU seconds of this thread, or elapsed time once a GPU has done all that it was given."""
    if device.type == "cpu":
        return time.thread_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
