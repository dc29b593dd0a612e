"""Measures the time of a training step, whole and by phase, and its share of the machine's peak.

`Trainer.step` is timed as a run calls it, on random images that are sharded into a temporary
folder. That needs neither Ray nor Prefect nor MLflow: a machine with torch, numpy, pillow, pyyaml,
pydantic, webdataset, safetensors and tqdm runs `python -m gan_train.bench.step RECIPE ...`, and
`gan-train bench-step` is the same. Time is CPU seconds of one thread, or elapsed time on a GPU.

Forms (precision, layout, other ways to compute: `forms.py`) take turns, and the medians over the
rounds are reported: the speed of a machine drifts, so ratios within one call say more than seconds.
The usual comparison:

    python -m gan_train.bench.step stylegan2-emoji-64 --resolutions 32,64 --batch 16 \\
        --precisions float32,bf16 --layouts channels_last --instead scaled,grouped \\
        --set family.z_dim=512 --set family.w_dim=512 --set family.channel_base=1024 \\
        --set family.channel_max=64 --set family.path_length_every=4 --set family.augment=none
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from gan_train import recipes
from gan_train.adversary import Clock, Stage
from gan_train.bench.forms import OF_STYLEGAN2, WHOLE, Form, forms
from gan_train.bench.operations import Arithmetic, attainable, seconds
from gan_train.bench.options import EPILOG, SUMMARY, add_arguments
from gan_train.bench.progress import Progress
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.families.stylegan.build import StyleGANConfig
from gan_train.images.pixels import to_picture
from gan_train.runs.runtime import PlainRuntime
from gan_train.training import schedule
from gan_train.training.precision import faster
from gan_train.training.trainer import Trainer

REPEATS = 4  # so many steps of each phase alone are timed in every round


@dataclass
class Measured:
    """The measurements of one form. Lists have one number of seconds for each round."""

    step: list[float] = field(default_factory=list)
    """A whole step: the mean over one cycle of the lazy regularisers."""
    phases: dict[str, list[float]] = field(default_factory=dict)
    """Each phase alone, by name."""
    rest: list[float] = field(default_factory=list)
    """The parts of a step beside its phases: batch, statistics, moving average."""
    operations: float = 0.0
    """Operations of convolutions and matrix products per step."""
    counted_seconds: float = 0.0
    """Seconds in those operations per step, in the first round, in which they were counted."""
    memory: int = 0
    """Peak bytes on a GPU, for networks, optimizers and a cycle of steps; 0 on a CPU."""


class Subject:
    """One form under measurement: a trainer in its last stage, with some batches in memory."""

    def __init__(self, config: Config, form: Form, folder: Path, batch: int | None) -> None:
        shards = shard(config.data, folder)
        index = Index.load(shards)
        schedule.check(config, index.image_shape, world_size=1)
        runtime = _runtime(config, folder)
        self.form, self.device = form, runtime.device
        before = self._allocated()
        self.trainer = Trainer(config, index, shards, runtime)
        *earlier, last = self.trainer.stages
        self.stage = replace(last, batch=batch or last.batch)
        self.trainer.clock = Clock(0, sum(stage.nimg for stage in earlier) + last.nimg // 2)
        stream = self.trainer.loader.batches(0, self.stage.batch, self.stage.resolution)
        with closing(stream):
            self._turn = itertools.cycle(list(itertools.islice(stream, 4)))
        self.cycle = math.lcm(*(phase.every for phase in self.stage.phases))
        self.measured = Measured()
        self._run(self.stage, self.cycle)  # allocates memory and chooses kernels
        self._resident = self._allocated() - before

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0

    def _run(self, stage: Stage, steps: int) -> float:
        """Take so many steps; returns the seconds per step."""
        with self.form.active():
            start = seconds(self.device)
            for _ in range(steps):
                self.trainer.step(stage, next(self._turn))
            return (seconds(self.device) - start) / steps

    def count(self) -> None:
        """Count the arithmetic of one cycle, and time it."""
        with Arithmetic(self.device) as counted:
            self._run(self.stage, self.cycle)
        self.measured.operations = counted.operations / self.cycle
        self.measured.counted_seconds = counted.seconds / self.cycle

    def round(self) -> None:
        """Time a cycle of whole steps, then each phase.

        A phase that takes tensors from other phases is run after them, and their time is
        subtracted.
        """
        m, before = self.measured, self._allocated()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        m.step.append(self._run(self.stage, self.cycle))
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            m.memory = max(m.memory, self._resident + peak - before)
        rest = self._run(replace(self.stage, phases=()), REPEATS)
        m.rest.append(rest)
        for phase in self.stage.phases:
            needed = [p for p in self.stage.phases if set(p.leaves) & set(phase.takes)]
            run = tuple(replace(p, every=1) for p in (*needed, phase))
            together = self._run(replace(self.stage, phases=run), REPEATS) - rest
            others = sum(m.phases[p.name][-1] for p in needed)
            m.phases.setdefault(phase.name, []).append(together - others)


def _runtime(config: Config, folder: Path) -> PlainRuntime:
    """One process with a GPU where there is one; where the recipe requires one, without it, too."""
    return PlainRuntime(folder, "no" if config.cluster.gpu == "no" else "auto")


def measure(
    recipe: str,
    overrides: Sequence[str],
    *,
    resolutions: Sequence[int] | None,
    batch: int | None,
    precisions: Sequence[str] | None,
    layouts: Sequence[str] | None,
    instead: Sequence[str],
    rounds: int,
) -> Iterator[str]:
    """Yield the lines of the report, one resolution after another; progress goes to stderr. An
    argument that is None is taken from the recipe; `instead` has names of `options.OTHER_WAYS`.

    Raises UserError for a recipe or batch that is not possible, and for ways that only StyleGAN2
    has with another family.
    """
    given = recipes.load(recipe, overrides)
    family = given.family
    stylegan2 = isinstance(family, StyleGANConfig) and family.generation == 2
    if wrong := [name for name in instead if name in OF_STYLEGAN2 and not stylegan2]:
        raise UserError(f"--instead {wrong[0]}: {given.name} is no StyleGAN2")
    if rounds < 1:
        raise UserError(f"--rounds {rounds}: at least 1")
    layouts = layouts or ("channels_last" if given.train.channels_last else "contiguous",)
    if precisions is None:
        own = given.train.precision
        precisions = (faster(_runtime(given, Path()).device) if own == "auto" else own,)
    for resolution in resolutions or (given.data.resolution,):
        with tempfile.TemporaryDirectory() as folder:
            random_pictures(Path(folder) / "pictures", resolution, count=4 * (batch or 16))
            compared = forms(precisions, layouts, instead)
            with closing(Progress(len(compared) * (1 + rounds))) as progress:
                subjects = []
                for form in compared:
                    changes = _changes(given, form, resolution, batch, Path(folder))
                    config = recipes.change(given, changes)
                    with progress.part(f"{resolution} px, set up: {form}"), form.active():
                        subjects.append(Subject(config, form, Path(folder), batch))
                peaks = _take_turns(subjects, rounds, progress)
            yield from _report(given.name, subjects, peaks)


def _changes(
    given: Config, form: Form, resolution: int, batch: int | None, folder: Path
) -> dict[str, Any]:
    """The changes to the recipe: the form, the size, and settings that do not concern a step."""
    changes = on_random_pictures(given, folder) | {
        "data.resolution": resolution,
        "train.precision": form.precision,
        "train.channels_last": form.channels_last,
    }
    return changes if batch is None else changes | {"train.batch": batch}


def on_random_pictures(given: Config, folder: Path) -> dict[str, Any]:
    """The changes to a recipe that lets it train on the random pictures in `folder`, without
    settings that do not concern a step."""
    changes: dict[str, Any] = {
        "data.source": str(folder / "pictures"),
        "data.only_classes": [],
        "data.lanes": 1,
        "data.loader_workers": 0,
        "workspace": str(folder),
        "train.threads": 1,
        "train.start_from": None,
        "train.total_kimg": None,
        "evaluate.metrics": ["diversity"],
        "evaluate.images": 4,
    }
    if given.evaluate.pictures is not None:  # then held-out images serve as test pictures
        changes |= {"evaluate.pictures": None, "data.held_out": 0.1}
    if given.data.second is not None:  # the random pictures serve as both domains
        changes["data.second"] = {"source": None, "only_classes": [], "pairs": "none"}
    return changes


def random_pictures(folder: Path, resolution: int, count: int) -> None:
    """Write PNG files of noise into two class folders."""
    random = np.random.default_rng(0)
    for number in range(count):
        pixels = random.integers(256, size=(3, resolution, resolution), dtype=np.uint8)
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_picture(torch.from_numpy(pixels)).save(path)


def _take_turns(
    subjects: list[Subject], rounds: int, progress: Progress
) -> dict[torch.dtype, tuple[float, str]]:
    """Measure all forms, round by round. Returns the machine's peak in operations per second by
    type, with the name of the operation that reached it."""
    peaks: dict[torch.dtype, tuple[float, str]] = {}
    for number in range(rounds):
        for subject in subjects:
            dtype = subject.form.dtype
            what = f"{subject.stage.resolution} px, round {number + 1} of {rounds}: {subject.form}"
            with progress.part(what):
                tried = attainable(subject.device, dtype)
                best = max((rate, name) for name, rate in tried.items())
                peaks[dtype] = max(best, peaks.get(dtype, best))
                if number == 0:
                    subject.count()
                subject.round()
    return peaks


# ---- the report --------------------------------------------------------------------------------


def _report(
    name: str, subjects: list[Subject], peaks: dict[torch.dtype, tuple[float, str]]
) -> Iterator[str]:
    first = subjects[0]
    stage, gpu = first.stage, first.device.type == "cuda"
    machine = torch.cuda.get_device_name(first.device) if gpu else "CPU, one thread, CPU seconds"
    rounds = len(first.measured.step)
    yield f"{name} at {stage.resolution} px, batch {stage.batch}; {machine}; rounds: {rounds}"
    for dtype, (rate, what) in peaks.items():
        yield f"peak {str(dtype).removeprefix('torch.')}: {rate / 1e9:,.0f} GFLOP/s, a large {what}"

    yield f"{'whole step':26}      ms  spread  images/s   GFLOP  of peak" + "   GiB" * gpu
    for subject in subjects:
        m, step = subject.measured, median(subject.measured.step)
        spread = (max(m.step) - min(m.step)) / step
        share = m.operations / step / peaks[subject.form.dtype][0]
        yield (
            f"{subject.form!s:26}{1e3 * step:8.1f}{100 * spread:7.1f}%{stage.batch / step:10.1f}"
            f"{m.operations / 1e9:8.2f}{100 * share:8.1f}%" + f"{m.memory / 2**30:6.2f}" * gpu
        )

    heads = [p.name + (f" /{p.every}" if p.every > 1 else "") for p in stage.phases]
    yield f"{'ms by phase (/steps)':26}" + "".join(f"{head:>14}" for head in [*heads, "the rest"])
    for subject in subjects:
        parts = [*subject.measured.phases.values(), subject.measured.rest]
        yield f"{subject.form!s:26}" + "".join(f"{1e3 * median(part):14.1f}" for part in parts)

    for subject in subjects:
        yield _bound(subject, peaks[subject.form.dtype][0])
    yield from _ratios(subjects)
    yield ""


def _bound(subject: Subject, peak: float) -> str:
    m = subject.measured
    counted = m.counted_seconds / m.step[0]
    inside = m.operations / m.counted_seconds / peak
    return (
        f"{subject.form}: {100 * counted:.0f}% of the time is in convolutions and matrix products, "
        f"at {100 * inside:.0f}% of the peak; the rest is memory-bound passes and calls"
    )


def _ratios(subjects: list[Subject]) -> Iterator[str]:
    """Lines that tell how many times as long the other ways take as the usual one: medians over the
    rounds. Ways in `WHOLE` are compared with the usual way in every precision."""
    for other, ours in itertools.product(subjects, subjects):
        one, fast = other.form, ours.form
        same = one.precision == fast.precision or one.instead in WHOLE
        if one.instead and not fast.instead and same:
            rounds = zip(other.measured.step, ours.measured.step, strict=True)
            ratios = [slow / quick for slow, quick in rounds]
            yield (
                f"{one} takes {median(ratios):.2f} times as long as {fast} "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gan_train.bench.step",
        description=SUMMARY[0].upper() + SUMMARY[1:] + ".",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", help="a YAML file, or the name of one in configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    add_arguments(parser)
    given = parser.parse_args(arguments)
    try:
        for line in measure(**vars(given)):
            print(line, flush=True)
    except UserError as error:
        print(f"gan-train: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
