"""Counts what a stage of training would do, without doing it: operations, and memory.

The losses and their gradients are computed on fake tensors, which have shapes but no contents. A
family whose losses look at their contents cannot be counted this way. It is done in a process of
its own, because functions that remember their results would remember fake ones.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from gan_train.adversary import Batch, Clock, ImageShape, Translates, Upscales
from gan_train.bench.operations import Arithmetic, attainable
from gan_train.config import Config
from gan_train.rng import BatchRandom
from gan_train.training.workers import kill, started

EFFICIENCY = 0.4
"""The share of the device's peak that a step is expected to reach where no step was measured."""
_FILE = "counted.json"
_BYTES_PER_PARAMETER = 16  # the weight, its gradient, and two moments of Adam


@dataclass(frozen=True)
class Counted:
    """What a step of one stage does."""

    operations: float
    """Multiplications and additions for each image of the batch, the mean over a cycle of the lazy
    regularisers."""
    activations: float
    """Bytes for each image that the largest phase keeps for its backward pass, in float32."""
    parameters: float
    """Bytes of networks, gradients, moments and moving averages."""

    def memory_gib(self, images: int) -> float:
        """About the peak memory of a worker that has so many images at a time."""
        return (self.parameters + images * self.activations) / 2**30


def count(config: Config, shape: ImageShape, stages: Sequence[str]) -> dict[str, Counted]:
    """Count a step of each named stage; a stage is left out where that is not possible."""
    with tempfile.TemporaryDirectory(prefix="gan-train-") as folder:
        processes = started(_worker, (config, shape, stages, folder), 1)
        try:
            processes.join()
        finally:
            kill(processes)
        found = json.loads((Path(folder) / _FILE).read_text())
    return {name: Counted(**fields) for name, fields in found.items()}


def estimate(
    config: Config, shape: ImageShape, known: Mapping[str, float], units: float, device: str
) -> dict[str, float]:
    """The seconds for an image in each stage that is not among the `known` ones, by its operations.

    They are done at the speed of the last known stage. Without one, each of so many `units` (cores,
    or GPUs) does a share of the device's peak. A fade is taken to have the operations of the level
    that it brings.
    """
    stages = [stage.name for stage in config.family.build(shape, config.train.batch).stages()]
    unknown = [name for name in stages if name not in known]
    last = [name for name in stages if name in known][-1:]
    if not unknown:
        return {}
    level = {name: name.removesuffix("-fade") for name in [*last, *unknown]}
    counted = count(config, shape, list(dict.fromkeys(level.values())))
    if last and level[last[0]] in counted:
        speed = counted[level[last[0]]].operations / known[last[0]]
    else:
        peak = max(attainable(torch.device(device), torch.float32).values())
        speed = EFFICIENCY * peak * units
    return {
        name: counted[level[name]].operations / speed for name in unknown if level[name] in counted
    }


def _worker(number: int, config: Config, shape: ImageShape, stages: list[str], folder: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a while to import

    found, mode = {}, FakeTensorMode()  # one mode, as cached tensors belong to it
    for stage in stages:
        # a RuntimeError is PyTorch's answer to code that needs the contents of a fake tensor
        with suppress(RuntimeError), mode:
            found[stage] = asdict(_count(config, shape, stage))
    (Path(folder) / _FILE).write_text(json.dumps(found))


def _count(config: Config, shape: ImageShape, stage_name: str) -> Counted:
    adversary = config.family.build(shape, config.train.batch)
    stages = adversary.stages()
    number = next(i for i, stage in enumerate(stages) if stage.name == stage_name)
    stage, images = stages[number], adversary.grain
    before = sum(s.nimg for s in stages[:number])
    clock = Clock(0, before + stage.nimg // 2)
    adversary.advance(clock)

    side = stage.resolution
    batch: Batch = {"image": torch.zeros(images, shape.channels, side, side)}
    if shape.classes:
        batch["label"] = torch.zeros(images, dtype=torch.int64)
    if isinstance(adversary, Upscales):
        small = side // adversary.scale
        batch["low"] = torch.zeros(images, shape.channels, small, small)
    if isinstance(adversary, Translates):
        batch["other"] = batch["image"].clone()
    positions = torch.zeros(images, dtype=torch.int64)

    operations, largest, left = 0.0, 0, dict[str, Tensor]()
    for phase in stage.phases:
        kept = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel() * tensor.element_size()
            return tensor

        taken = {name: left[name] for name in phase.takes}
        with (
            Arithmetic(torch.device("cpu")) as counted,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            random = BatchRandom(config.seed, phase.name, positions)
            losses = phase.loss(batch | taken, random, clock)
            left |= losses.leaves
            torch.stack(list(losses.terms.values())).sum().backward()
        operations += counted.operations / phase.every
        largest = max(largest, kept)
    weights = sum(p.numel() for p in adversary.parameters())
    averaged = sum(
        p.numel() for name in adversary.averaged for p in getattr(adversary, name).parameters()
    )
    parameters = _BYTES_PER_PARAMETER * weights + 4 * averaged
    return Counted(operations / images, largest / images, parameters)
