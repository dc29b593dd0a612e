"""Trains small GANs that are ill on purpose, and healthy ones, and asks the doctor what they have.

    python -m tests.faults.ward --out build/ward             # all that are ill, and healthy ones
    python -m tests.faults.ward --out build/ward --seeds 1,2,3,4,5 demo dcgan-glyphs
    python -m tests.faults.ward --out build/ward --seeds 1,2,3,4,5 --times 2 demo dcgan-glyphs
    python -m tests.faults.ward --out build/ward --judge     # the table of docs/doctor.md

Each training takes about a minute on one core, on the glyphs of `sample_data/` at 16 pixels.
"""

from __future__ import annotations

import argparse
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gan_train import recipes
from gan_train.adversary import Clock, OptimizerSettings, Stage
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.loader import LoadedBatch
from gan_train.data.sharding import shard
from gan_train.diagnosis.signs import diagnose
from gan_train.runs.events import read_events
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
FEW = 40
"""The images of the tiny data set."""
COMMON = (
    *("data.resolution=16", "train.batch=32", "train.precision=float32", "train.threads=1"),
    *("train.tick_kimg=0.5", "train.sample_kimg=100"),
    *("train.keep_checkpoints=2", "evaluate.images=60", "evaluate.metrics=[frechet, diversity]"),
)
RECIPES: dict[str, tuple[str, ...]] = {
    "demo": (
        "family.channels={4: 32, 8: 32, 16: 16}",
        *("family.stable_kimg={4: 0.5, 8: 0.5, 16: 99}", "family.fade_kimg=0.25"),
        *("train.total_kimg=6", "train.checkpoint_kimg=1", "train.tick_kimg=0.25"),
    ),
    "dcgan-glyphs": ("family.channels=16", "train.total_kimg=12", "train.checkpoint_kimg=3"),
    "stylegan2-glyphs": (
        "family.channels={4: 32, 8: 32, 16: 16}",
        *("train.total_kimg=4", "train.checkpoint_kimg=1", "train.tick_kimg=0.25"),
    ),
    "lsgan-glyphs": ("family.channels=16", "train.total_kimg=12", "train.checkpoint_kimg=3"),
    "lapgan-glyphs": (
        *("family.units_g=128", "family.units_d=128"),
        *(
            "family.channels_g={16: 16}",
            "family.channels_d={16: 16}",
            "family.r1_gamma={8: 1, 16: 0.1}",
        ),
        *("train.total_kimg=12", "train.checkpoint_kimg=3"),
    ),
    "vanilla-glyphs": ("train.total_kimg=16", "train.checkpoint_kimg=4"),
}
"""Small healthy trainings: recipes of `configs/`, and what makes them smaller."""


def few_images(scratch: Path) -> Path:
    """A folder with the first images of ten letters, `FEW` in all."""
    folder = scratch / "few"
    with zipfile.ZipFile(ROOT / "sample_data" / "glyphs.zip") as archive:
        for letter in "ABCDEFGHIJ":
            names = [n for n in sorted(archive.namelist()) if f"/{letter}/" in f"/{n}"]
            for name in [n for n in names if n.endswith(".png")][: FEW // 10]:
                target = folder / letter / Path(name).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    return folder


def _rates(**factors: float) -> Callable[[Trainer], None]:
    """Multiply the learning rates of optimizers."""

    def induce(trainer: Trainer) -> None:
        own = trainer.adversary.settings

        def settings(
            optimizer: str, declared: OptimizerSettings, stage: Stage, clock: Clock
        ) -> OptimizerSettings:
            found = own(optimizer, declared, stage, clock)
            return replace(found, lr=found.lr * factors.get(optimizer, 1.0))

        trainer.adversary.settings = settings  # type: ignore[method-assign]

    return induce


def _latents_hardly_count(trainer: Trainer) -> None:
    for adversary in (trainer.adversary, trainer.averaged.adversary):
        own = adversary.generate

        def generate(z: Any, label: Any, own: Any = own) -> Any:
            return own(0.02 * z, label)

        adversary.generate = generate


def _labels_at_random(trainer: Trainer) -> None:
    """D and G get labels that have nothing to do with the images."""
    own, classes = trainer.micro_batches, len(trainer.index.classes)

    def micro_batches(loaded: LoadedBatch) -> Any:
        random = torch.Generator().manual_seed(trainer.clock.nimg)
        assert loaded.labels is not None
        labels = torch.randint(classes, loaded.labels.shape, generator=random)
        return own(replace(loaded, labels=labels))

    trainer.micro_batches = micro_batches  # type: ignore[method-assign]


@dataclass(frozen=True)
class Case:
    """A training that is ill on purpose: what it should be called, and how it is made ill."""

    expected: str
    recipe: str
    how: str
    overrides: tuple[str, ...] = ()
    induce: Callable[[Trainer], None] = lambda trainer: None
    few: bool = False


LONGER = ("train.total_kimg=24", "train.checkpoint_kimg=4", "evaluate.images=120")
CASES: dict[str, Case] = {
    "frozen-g": Case(
        "discriminator wins",
        "dcgan-glyphs",
        "G's learning rate is divided by 10,000",
        LONGER,
        induce=_rates(G=1e-4),
    ),
    "latents": Case(
        "mode collapse",
        "dcgan-glyphs",
        "latents are divided by 50",
        LONGER,
        induce=_latents_hardly_count,
    ),
    "few-ada": Case(
        "augmentation at its bound",
        "stylegan2-glyphs",
        f"{FEW} images, ADA with target 0.01, no R1",
        (
            *("family.augment=ada", "family.augment_kimg=0.5", "family.augment_target=0.01"),
            "family.r1_gamma=0",
            *("family.channels={4: 16, 8: 16, 16: 8}", "train.tick_kimg=0.1"),
            *("train.total_kimg=2", "train.checkpoint_kimg=1"),
        ),
        few=True,
    ),
    "few": Case(
        "overfitting",
        "dcgan-glyphs",
        f"{FEW} images without augmentation",
        ("train.total_kimg=30", "train.checkpoint_kimg=5"),
        few=True,
    ),
    "lr-1000": Case("not finite", "demo", "a learning rate of 1000", ("family.lr=1000",)),
    "lr-1": Case(
        "norms run away", "dcgan-glyphs", "a learning rate of 1", (*LONGER, "family.lr=1")
    ),
    "lr-tiny": Case(
        "no progress", "dcgan-glyphs", "a learning rate of 1e-7", (*LONGER, "family.lr=0.0000001")
    ),
    "labels": Case(
        "classes ignored",
        "dcgan-glyphs",
        "labels at random in training",
        (*LONGER, "train.total_kimg=32"),
        induce=_labels_at_random,
    ),
    "d-x100": Case(
        "norms run away",
        "vanilla-glyphs",
        "D's learning rate times 100",
        ("train.total_kimg=40", "train.checkpoint_kimg=10"),
        induce=_rates(D=100),
    ),
    "g-x30": Case(
        "mode collapse",
        "vanilla-glyphs",
        "G's learning rate times 30",
        ("train.total_kimg=40", "train.checkpoint_kimg=10"),
        induce=_rates(G=30),
    ),
}


def config_of(recipe: str, scratch: Path, *more: str) -> Config:
    given = (*COMMON, *RECIPES[recipe], f"workspace={scratch}", *more)
    path = ROOT / "configs" / f"{recipe}.yaml"
    source = (
        ()
        if any(o.startswith("data.source") for o in more)
        else (f"data.source={ROOT / 'sample_data' / 'glyphs.zip'}",)
    )
    return recipes.load(str(path), [*given, *source])


def train(config: Config, run_dir: Path, induce: Callable[[Trainer], None]) -> str:
    """Train in this process; returns what ended it."""
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir(parents=True)
    shards = shard(config.data, config.workspace)
    trainer = Trainer(config, Index.load(shards), shards, PlainRuntime(run_dir, "no"))
    induce(trainer)
    try:
        trainer.run()
    except FloatingPointError as error:
        return str(error)[:80]
    return ""


def told(run_dir: Path) -> list[tuple[int, str]]:
    """What was named as the training went on, each name once, with the images at which it was."""
    events, found = read_events(run_dir), dict[str, int]()
    for place, event in enumerate(events):
        if event["kind"] in ("metrics", "checkpoint", "diverged"):
            for one in diagnose(events[: place + 1]):
                found.setdefault(one.name, event["nimg"])
    return [(nimg, name) for name, nimg in found.items()]


def judge(scratch: Path) -> None:
    """Print the table of all trainings in a folder: what they have, and what was named."""
    for run_dir in sorted((scratch / "runs").iterdir()):
        name = run_dir.name.rpartition("-")[0]
        case = CASES.get(name) or Case("healthy", name, "")
        named = ", ".join(f"{what} ({nimg / 1000:.3g})" for nimg, what in told(run_dir))
        print(f"| {run_dir.name} | {case.recipe} | {case.how} | {case.expected} | {named or '-'} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/ward"))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--times", type=int, default=1, help="so many times as long, if healthy")
    parser.add_argument("--judge", action="store_true", help="judge the logs that are there")
    parser.add_argument("names", nargs="*", help="cases or recipes; default: all")
    given = parser.parse_args()
    scratch = given.out.absolute()
    if given.judge:
        judge(scratch)
        return
    few = few_images(scratch)
    for name in given.names or [*CASES, *RECIPES]:
        for seed in given.seeds.split(","):
            case = CASES.get(name) or Case("", name, "")
            more = [*case.overrides, f"seed={seed}"]
            if case.few:
                more += [f"data.source={few}", "evaluate.images=40"]
            config = config_of(case.recipe, scratch, *more)
            if name in RECIPES:
                kimg = given.times * config.train.total_kimg
                config = config_of(case.recipe, scratch, *more, f"train.total_kimg={kimg}")
            began = time.monotonic()
            ended = train(config, scratch / "runs" / f"{name}-{seed}", case.induce)
            print(f"{name}-{seed} {time.monotonic() - began:.0f} s {ended}", flush=True)


if __name__ == "__main__":
    main()
