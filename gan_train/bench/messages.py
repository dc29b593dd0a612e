"""Measures what messages between workers cost a training step, on the network at hand.

torchrun starts the workers, on one machine or on several. Ways to send gradients take turns in the
same processes, and a step's time is told beside that of a step without messages:

    torchrun --nproc-per-node 2 -m gan_train.bench.messages demo

With `--paced-ms` nothing is computed. Workers hold networks of the recipe's size, wait as long as
an accelerator would compute, layer by layer, and send gradients of that size. So a network can be
judged, or simulated, before there are accelerators for it. `docs/network.md` tells more.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gan_train import recipes
from gan_train.adversary import Adversary, Clock
from gan_train.bench.shapes import shape_of
from gan_train.bench.step import on_random_pictures, random_pictures
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.nn.collectives import end
from gan_train.runs.runtime import PlainRuntime
from gan_train.training import schedule
from gan_train.training.averaging import GradientAverage
from gan_train.training.optimizers import parameters_of
from gan_train.training.trainer import Trainer


class NoAverage(GradientAverage):
    """Sends nothing: every worker trains for itself, beside the others."""

    @contextmanager
    def of_backward(
        self, name: str, parameters: Sequence[Tensor], statistics: Sequence[Tensor] = ()
    ) -> Iterator[None]:
        yield


WAYS: dict[str, Callable[[], GradientAverage]] = {
    "none": NoAverage,
    "after": lambda: GradientAverage("full", bucket_bytes=sys.maxsize),
    "beside": lambda: GradientAverage("full"),
    "bf16": lambda: GradientAverage("bf16"),
}
"""No messages; one message after the backward pass; buckets beside the backward pass, as a run
sends them; the same, rounded to bfloat16."""


class Paced:
    """Networks of a real size that compute nothing: forward and backward passes only take time.

    A phase of a network takes `seconds`, a third of them forward. The parameters share the backward
    pass by their multiplications: their number, times the pixels of the layer's output where the
    name tells them, as StyleGAN's `b64`. A generator's phase spends the first half of the backward
    pass in the discriminator, which gets no gradients.
    """

    def __init__(self, adversary: Adversary, seconds: float) -> None:
        self.average: GradientAverage = NoAverage()
        self._seconds = seconds
        self._phases: dict[str, list[tuple[Tensor, float]]] = {}
        for optimizer, spec in adversary.optimizers().items():
            names = [n for net in spec.nets for n, _ in getattr(adversary, net).named_parameters()]
            parameters = parameters_of(adversary, spec)
            work = [_multiplications(n, p) for n, p in zip(names, parameters, strict=True)]
            shares = [w / sum(work) for w in work]
            self._phases[optimizer] = list(zip(parameters, shares, strict=True))

    def __str__(self) -> str:
        sizes = [f"{o} {_millions(dict(layers))}" for o, layers in self._phases.items()]
        return f"parameters in millions: {', '.join(sizes)}; {self._seconds * 1000:.0f} ms a phase"

    def step(self) -> None:
        """One phase of each network."""
        for optimizer, layers in self._phases.items():
            time.sleep(self._seconds / 3)
            backward = self._seconds * 2 / 3
            x = torch.zeros([], requires_grad=True)
            own = backward / 2 if optimizer == "G" else backward
            for parameter, share in layers:
                x = _Layer.apply(x, parameter, own * share)  # type: ignore[no-untyped-call]
            x = _Layer.apply(x, torch.zeros([]), backward - own)  # type: ignore[no-untyped-call]
            with self.average.of_backward(optimizer, [p for p, _ in layers]):
                x.backward()
            for parameter, _ in layers:
                parameter.grad = None


def _millions(parameters: dict[Tensor, float]) -> str:
    return f"{sum(p.numel() for p in parameters) / 1e6:.1f}"


def _multiplications(name: str, parameter: Tensor) -> float:
    side = re.search(r"\bb(\d+)\.", name)
    return parameter.numel() * (int(side[1]) ** 2 if side and parameter.dim() == 4 else 1)


class _Layer(torch.autograd.Function):
    """Takes so many seconds backward, and gives the parameter a gradient of its size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, parameter: Tensor, seconds: float) -> Tensor:
        ctx.parameter, ctx.seconds = parameter, seconds
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, Tensor | None, None]:
        if ctx.seconds > 1e-4:  # a shorter sleep would take longer
            time.sleep(ctx.seconds)
        gradient = ctx.parameter.detach().clone() if ctx.parameter.requires_grad else None
        return dx, gradient, None


class Real:
    """The trainer of a recipe in its last stage, on random pictures that are in memory."""

    def __init__(self, config: Config, folder: Path) -> None:
        random_pictures(folder / "pictures", config.data.resolution, count=config.train.batch)
        changes = on_random_pictures(config, folder) | {"data.lanes": dist.get_world_size()}
        config = recipes.change(config, changes)
        shards = shard(config.data, folder)
        index = Index.load(shards)
        schedule.check(config, index.image_shape, dist.get_world_size())
        self._trainer = Trainer(config, index, shards, PlainRuntime(folder, config.cluster.gpu))
        *earlier, self._stage = self._trainer.stages
        self._trainer.clock = Clock(0, sum(s.nimg for s in earlier) + self._stage.nimg // 2)
        stream = self._trainer.loader.batches(0, self._stage.batch, self._stage.resolution)
        with closing(stream):
            self._turn = itertools.cycle(list(itertools.islice(stream, 4)))

    def __str__(self) -> str:
        stage = self._stage
        return f"{stage.resolution} px, global batch {stage.batch}, {self._trainer.device.type}"

    @property
    def average(self) -> GradientAverage:
        """What the trainer averages gradients with."""
        return self._trainer.average

    @average.setter
    def average(self, average: GradientAverage) -> None:
        self._trainer.average = average

    def step(self) -> None:
        """One training step."""
        self._trainer.step(self._stage, next(self._turn))


def measure(
    config: Config, ways: Sequence[str], *, steps: int, rounds: int, paced_ms: float | None
) -> Iterator[str]:
    """Yield the lines of the report. Every worker must take all of them.

    Each way takes two steps before it is timed, and learns in them what there is to send. Messages
    of synchronised batch normalisation stay in all ways.
    """
    with tempfile.TemporaryDirectory() as folder:
        subject: Paced | Real
        if paced_ms is None:
            subject = Real(config, Path(folder))
        else:
            adversary = config.family.build(shape_of(config), config.train.batch)
            subject = Paced(adversary, paced_ms / 1000)
        yield f"{config.name}, {dist.get_world_size()} workers; {subject}"
        averages = {way: WAYS[way]() for way in ways}
        found: dict[str, list[float]] = {way: [] for way in ways}
        for number, (way, average) in itertools.product(range(rounds), averages.items()):
            subject.average = average
            for _ in range(2 if number == 0 else 1):
                subject.step()
            found[way].append(_seconds_a_step(subject, steps))
        for way, seconds in found.items():
            ratios = [one / base for one, base in zip(seconds, found[ways[0]], strict=True)]
            yield (
                f"{way:8}{1000 * median(seconds):9.1f} ms a step, {median(ratios):6.3f} times as "
                f"long as {ways[0]} ({min(ratios):.3f} to {max(ratios):.3f})"
            )


def _seconds_a_step(subject: Paced | Real, steps: int) -> float:
    """The mean time of a step until the slowest worker is done."""
    dist.barrier()
    start = time.perf_counter()
    for _ in range(steps):
        subject.step()
    dist.barrier()
    return (time.perf_counter() - start) / steps


def main(arguments: list[str] | None = None) -> int:
    """The command line of each worker; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="torchrun ... -m gan_train.bench.messages",
        description="Measure what messages between workers cost a training step.",
        epilog="two workers on one machine: torchrun --nproc-per-node 2 -m "
        "gan_train.bench.messages demo; for a slow network, simulated too, see docs/network.md",
    )
    parser.add_argument("recipe", help="a YAML file, or the name of one in configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument(
        "--ways",
        nargs="+",
        default=list(WAYS),
        choices=WAYS,
        help="what is compared, with the first of them: no messages, one message after the "
        "backward pass, buckets beside it (as in a run), the same in bf16",
    )
    parser.add_argument("--steps", type=int, default=8, help="steps of each way in every round")
    parser.add_argument("--rounds", type=int, default=3, help="the ways take turns so many times")
    parser.add_argument(
        "--paced-ms",
        type=float,
        metavar="MS",
        help="compute nothing: each phase of a network takes so many milliseconds",
    )
    given = parser.parse_args(arguments)
    try:
        if not dist.is_torchelastic_launched():
            raise UserError("start the workers by torchrun, as `--help` shows")
        config = recipes.load(given.recipe, given.overrides)
        gpu = config.cluster.gpu != "no" and torch.cuda.is_available()
        dist.init_process_group("nccl" if gpu else "gloo")
        options = {"steps": given.steps, "rounds": given.rounds, "paced_ms": given.paced_ms}
        for line in measure(config, given.ways, **options):
            if dist.get_rank() == 0:
                print(line, flush=True)
    except UserError as error:
        print(f"gan-train: {error}", file=sys.stderr)
        return 2
    end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
