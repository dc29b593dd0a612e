"""Tells what limits a training on many GPUs, from a few measured constants.

    python -m gan_train.bench.scaling stylegan2-ffhq-1024-8gpu --step-ms 700 --gbit 100

One number must come from the GPU that is meant: `--step-ms`, the time of a step on one worker
without messages, as `gan-train bench-step` tells it. `docs/scaling.md` says where the constants
come from, and what the model was checked against.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from gan_train import recipes
from gan_train.bench.shapes import shape_of
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.training.optimizers import parameters_of

LINE_SHARE = 0.91
"""The share of a line's rate that gradients get: measured with 2, 3 and 4 workers at 1 Gbit/s."""
BACKWARD_SHARE = 2 / 3
"""The share of a phase that is its backward pass, in which messages travel unseen."""
HIDDEN_OF_G = 0.05
"""The share of a generator's backward pass at whose end most of its gradients come."""


@dataclass(frozen=True)
class Load:
    """What a worker computes and sends in a step: parameters of G and of D, and seconds without
    messages, in which both phases take the same time."""

    parameters_g: int
    parameters_d: int
    seconds: float

    def sent(self, workers: int) -> float:
        """The bytes that a worker sends in a step: an all-reduce in a ring sends 2 (N - 1) / N
        times the gradients, in float32."""
        return 2 * (workers - 1) / workers * 4 * (self.parameters_g + self.parameters_d)

    def after(self, workers: int, gbit: float) -> float:
        """The seconds of a step whose messages follow the backward passes, on lines of `gbit`."""
        return self.seconds + self.sent(workers) * 8 / (LINE_SHARE * gbit * 1e9)

    def beside(self, workers: int, gbit: float) -> float:
        """The seconds of a step whose messages travel beside the backward passes, as in a run.
        Those of D are hidden as long as its backward pass lasts, those of G hardly."""
        messages = self.after(workers, gbit) - self.seconds
        share_d = self.parameters_d / (self.parameters_g + self.parameters_d)
        backward = BACKWARD_SHARE * self.seconds / 2
        hidden = min(messages * share_d, backward) + min(
            messages * (1 - share_d), HIDDEN_OF_G * backward
        )
        return self.seconds + messages - hidden


def load_of(config: Config, seconds: float) -> Load:
    """The load of a recipe in its last stage, with `seconds` a step on one worker alone."""
    adversary = config.family.build(shape_of(config), config.train.batch)
    counts = [
        sum(p.numel() for p in parameters_of(adversary, spec))
        for _, spec in sorted(adversary.optimizers().items())
    ]
    return Load(counts[-1], counts[0], seconds)  # D, then G


def table(config: Config, load: Load, numbers: list[int], gbit: float, kb: float) -> Iterator[str]:
    """The lines of the report, one for each number of workers, each with the recipe's share of a
    batch. The last column is what the recipe would have to say."""
    share, lanes = config.train.batch // config.cluster.workers, config.data.lanes
    yield (
        f"{'workers':>8}{'batch':>8}{'sent GB/s':>11}{'ms a step':>11}{'efficiency':>12}"
        f"{'images/s':>10}{'store GB/s':>12}  needs"
    )
    for workers in numbers:
        seconds = load.beside(workers, gbit)
        batch, rate = share * workers, share * workers / seconds
        needs = f"train.batch={batch}" if batch != config.train.batch else ""
        if lanes % workers:
            needs += f" data.lanes={workers * -(-lanes // workers)}"
        yield (
            f"{workers:8}{batch:8}{load.sent(workers) / seconds / 1e9:11.2f}{seconds * 1e3:11.0f}"
            f"{load.seconds / seconds:12.0%}{rate:10.0f}{rate * kb / 1e6:12.3f}  {needs}"
        )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gan_train.bench.scaling",
        description="Tell what limits a training on many GPUs.",
        epilog="sent: by each worker; store: what all read in the first epoch together",
    )
    parser.add_argument("recipe", help="a YAML file, or the name of one in configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--step-ms", type=float, required=True, help="of one worker, alone")
    parser.add_argument("--gbit", type=float, default=100, help="a worker's share of the network")
    parser.add_argument("--image-kb", type=float, default=100, help="of a stored image")
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 512])
    given = parser.parse_args(arguments)
    try:
        config = recipes.load(given.recipe, given.overrides)
        load = load_of(config, given.step_ms / 1e3)
        for line in table(config, load, given.workers, given.gbit, given.image_kb):
            print(line)
    except UserError as error:
        print(f"gan-train: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
