"""The life of a step, on losses that can be followed by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gan_train.adversary import (
    Adversary,
    Batch,
    Clock,
    Losses,
    OptimizerSettings,
    Phase,
    Stage,
)
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.families.progan import ProGAN
from gan_train.families.vanilla import Vanilla
from gan_train.nn import growth
from gan_train.rng import BatchRandom
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.trainer import Trainer
from tests.training import run, tiny_config

VANILLA: dict[str, Any] = {
    "name": "vanilla",
    "z_dim": 3,
    "generator_widths": [4],
    "discriminator_widths": [2],
    "kimg": 1,
}
Act = Callable[[Tensor, Batch, Clock], Losses]


@pytest.fixture
def trainer(tiny_source: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Trainer:
    """In float64, on a family of two small networks; `request.param` changes the configuration."""
    changes = {"family": VANILLA, "train__precision": "float64"} | getattr(request, "param", {})
    config = tiny_config(tiny_source, tmp_path, **changes)
    shards = shard(config.data, config.workspace)
    return Trainer(config, Index.load(shards), shards, PlainRuntime(tmp_path / "run"))


def bias(trainer: Trainer) -> Tensor:
    """A parameter of G [4], which the losses of these tests are of."""
    found: Tensor = trainer.adversary.get_submodule("generator").layers[0].bias  # type: ignore[union-attr,index]
    return found


def stage_of(trainer: Trainer, *phases: tuple[Phase, Act]) -> Stage:
    """The trainer's stage with these phases, whose losses get G's bias."""

    def phase(given: Phase, act: Act) -> Phase:
        def loss(batch: Batch, rng: BatchRandom, clock: Clock) -> Losses:
            return act(bias(trainer), batch, clock)

        return replace(given, loss=loss)

    (stage,) = trainer.stages
    return replace(stage, phases=tuple(phase(*pair) for pair in phases))


def phase(name: str, **settings: Any) -> Phase:
    return Phase(name, "G", lambda batch, rng, clock: Losses({}), **settings)


def steps(trainer: Trainer, stage: Stage, count: int) -> list[Tensor]:
    """G's bias before the first step, and after each of them."""
    seen = [bias(trainer).detach().clone()]
    stream = trainer.loader.batches(0, stage.batch, stage.resolution)
    for _ in range(count):
        trainer.step(stage, next(stream))
        seen.append(bias(trainer).detach().clone())
    stream.close()
    return seen


def follow(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, plan: Callable[[Clock], OptimizerSettings]
) -> None:
    """Let the settings of every optimizer be those of a plan."""
    monkeypatch.setattr(
        trainer.adversary, "settings", lambda optimizer, declared, stage, clock: plan(clock)
    )


# ---- lazy phases -------------------------------------------------------------------------------


def test_a_lazy_phase_counts_for_the_steps_of_its_interval(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At steps 0 and 3 of five it moves by 3 times the gradient; the curve tells the same."""
    follow(trainer, monkeypatch, lambda clock: OptimizerSettings(lr=0.1))

    def act(b: Tensor, batch: Batch, clock: Clock) -> Losses:
        return Losses({"x": 2 * b.sum()}, {"watched": torch.tensor(5.0)})

    seen = steps(trainer, stage_of(trainer, (phase("lazy", every=3), act)), 5)
    moved = [after - before for before, after in pairwise(seen)]
    due = torch.full((4,), -0.1 * 3 * 2, dtype=torch.float64)
    for step, change in enumerate(moved):
        torch.testing.assert_close(change, due if step % 3 == 0 else torch.zeros_like(due))
    curves = trainer.curves.flush()
    first, second = seen[0].sum(), seen[3].sum()
    assert curves["loss/x"] == pytest.approx(float(3 * 2 * (first + second) / 2))
    assert curves["watched"] == 5


# ---- what phases leave -------------------------------------------------------------------------


def leaving(b: Tensor, batch: Batch, clock: Clock) -> Losses:
    return Losses({"x": b.sum()}, leaves={"means": batch["image"].mean((1, 2, 3))})


@pytest.mark.parametrize("trainer", [{"train__accumulate": 2}], indirect=True)
def test_a_phase_finds_what_an_earlier_one_left_for_its_own_micro_batch(trainer: Trainer) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    others: list[set[str]] = []

    def taking(b: Tensor, batch: Batch, clock: Clock) -> Losses:
        seen.append((batch["means"], batch["image"].mean((1, 2, 3))))
        return Losses({"y": b.sum()})

    def blind(b: Tensor, batch: Batch, clock: Clock) -> Losses:
        others.append(set(batch))
        return Losses({"z": b.sum()})

    stage = stage_of(
        trainer,
        (phase("leaving", leaves=("means",)), leaving),
        (phase("blind"), blind),
        (phase("taking", takes=("means",)), taking),
    )
    steps(trainer, stage, 2)
    assert len(seen) == 4 and all(torch.equal(*pair) for pair in seen)
    assert others == [{"image", "label"}] * 4  # what is not taken is not there


def test_what_is_left_must_be_declared(trainer: Trainer) -> None:
    for declared in ((), ("means", "more")):
        stage = stage_of(trainer, (phase("first", leaves=declared), leaving))
        with pytest.raises(ValueError, match=r"phase first leaves \['means'\], and declares \["):
            steps(trainer, stage, 1)


@pytest.mark.parametrize(
    ("phases", "works"),
    [
        ((phase("a", leaves=("x",)), phase("b", takes=("x",))), True),
        ((phase("a", leaves=("x",), every=2), phase("b", takes=("x",), every=4)), True),
        ((phase("a", leaves=("x",), every=2), phase("b", takes=("x",))), False),
        ((phase("b", takes=("x",)), phase("a", leaves=("x",))), False),
        ((phase("a", leaves=("y",)), phase("b", takes=("x", "y"))), False),
    ],
)
def test_a_stage_refuses_a_phase_that_takes_what_is_not_there(
    phases: tuple[Phase, ...], works: bool
) -> None:
    if works:
        assert Stage("s", 10, 8, 2, phases).phases == phases
    else:
        with pytest.raises(ValueError, match=r"stage s: phase b takes \['x'\], which no phase"):
            Stage("s", 10, 8, 2, phases)


# ---- settings of optimizers --------------------------------------------------------------------


@pytest.mark.parametrize("trainer", [{"family": VANILLA | {"optimizer": "adam"}}], indirect=True)
def test_adam_follows_scheduled_betas_and_weight_decay(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kingma and Ba 2014, algorithm 1, with other settings at every step; bias corrections are
    powers of the betas of the moment, as torch takes them."""

    def plan(clock: Clock) -> OptimizerSettings:
        betas = (0.5 + 0.1 * clock.step, 0.9 + 0.02 * clock.step)
        return OptimizerSettings(lr=0.1 / (clock.step + 1), betas=betas, weight_decay=clock.step)

    follow(trainer, monkeypatch, plan)

    def act(b: Tensor, batch: Batch, clock: Clock) -> Losses:
        return Losses({"x": (b**2 * torch.arange(1, 5)).sum()})

    seen = steps(trainer, stage_of(trainer, (phase("G"), act)), 3)
    b, first, second = seen[0], torch.zeros(4).double(), torch.zeros(4).double()
    for step in range(3):
        s = plan(Clock(step))
        g = 2 * b * torch.arange(1, 5) + s.weight_decay * b
        first = s.betas[0] * first + (1 - s.betas[0]) * g
        second = s.betas[1] * second + (1 - s.betas[1]) * g**2
        corrected = first / (1 - s.betas[0] ** (step + 1))
        spread = (second / (1 - s.betas[1] ** (step + 1))).sqrt()
        b = b - s.lr * corrected / (spread + 1e-8)
        torch.testing.assert_close(seen[step + 1], b)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_clipped_by_their_norm_over_all_parameters(
    accumulate: int, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pascanu et al. 2012, algorithm 1, after averaging: at step 0 above the limit, at step 1 below
    it; then weights decay. The curve tells the norm before it is cut."""
    changes = {"train__precision": "float64", "train__accumulate": accumulate, "family": VANILLA}
    config = tiny_config(tiny_source, tmp_path, **changes)
    shards = shard(config.data, config.workspace)
    trainer = Trainer(config, Index.load(shards), shards, PlainRuntime(tmp_path / "run"))
    network = trainer.adversary.get_submodule("generator")
    slopes = torch.tensor([3.0, 0.3, 0.3])  # by step, of all of the parameters
    count = sum(p.numel() for p in network.parameters())

    def plan(clock: Clock) -> OptimizerSettings:
        return OptimizerSettings(lr=0.1, clip_norm=20.0, weight_decay=0.5 if clock.step == 2 else 0)

    follow(trainer, monkeypatch, plan)

    def act(b: Tensor, batch: Batch, clock: Clock) -> Losses:
        whole = sum((p.sum() for p in network.parameters()), torch.zeros(()).double())
        return Losses({"x": float(slopes[clock.step]) * whole})

    stage = stage_of(trainer, (phase("G"), act))
    stream = trainer.loader.batches(0, stage.batch, stage.resolution)
    for step, slope in enumerate(slopes.tolist()):
        before = bias(trainer).detach().clone()
        trainer.step(stage, next(stream))
        norm = slope * count**0.5
        assert (norm > 20) == (step == 0), "the slopes show nothing"
        clipped = slope * min(1, 20 / norm)
        decay = 0.5 * before if step == 2 else torch.zeros(4)
        torch.testing.assert_close(bias(trainer).detach(), before - 0.1 * (clipped + decay))
        assert trainer.curves.flush()["gradient_norm/G"] == pytest.approx(norm)
    stream.close()


def test_families_are_asked_once_for_optimizers_and_stages(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the trainer; `check`, before it, and the data's side ask networks of their own."""
    asked: list[str] = []
    for family in (Vanilla, ProGAN):
        for name in ("optimizers", "stages"):
            monkeypatch.setattr(family, name, _counted(getattr(family, name), name, asked))
    monkeypatch.setattr(growth, "growth_stages", _counted(growth.growth_stages, "growth", asked))
    for settings in ({"family": VANILLA}, {}):
        config = tiny_config(tiny_source, tmp_path, train__total_kimg=0.16, **settings)
        shards = shard(config.data, config.workspace)
        asked.clear()
        runtime = PlainRuntime(tmp_path / config.family.name)
        runtime.run_dir.mkdir()
        trainer = Trainer(config, Index.load(shards), shards, runtime)
        trainer.run()
        assert trainer.clock.step == 10
        grown = ["growth"] if config.family.name == "progan" else []
        assert sorted(asked) == [*grown, "optimizers", "stages"]


def _counted(function: Callable[..., Any], name: str, asked: list[str]) -> Callable[..., Any]:
    def counted(*arguments: Any) -> Any:
        asked.append(name)
        return function(*arguments)

    return counted


def test_a_rate_of_a_stage_replaces_the_declared_one(trainer: Trainer) -> None:
    declared = OptimizerSettings(lr=0.5, betas=(0.1, 0.2), momentum=0.3)
    stage = replace(trainer.stages[0], phases=())
    family = Adversary()
    assert family.settings("G", declared, stage, Clock()) == declared
    found = family.settings("G", declared, replace(stage, lr=0.25), Clock())
    assert found == OptimizerSettings(lr=0.25, betas=(0.1, 0.2), momentum=0.3)


def test_the_rate_of_the_moment_is_logged(tiny_source: Path, tmp_path: Path) -> None:
    by_resolution = {"family__lr": 0.004, "family__lr_by_resolution": {8: 0.002}}
    config = tiny_config(tiny_source, tmp_path, **by_resolution)
    reported: list[tuple[float, float]] = []

    class Reporting(PlainRuntime):
        def report(self, metrics: dict[str, float], checkpoint: Path | None) -> None:
            if "learning_rate/D" in metrics:
                reported.append((metrics["nimg"], metrics["learning_rate/D"]))

    run(config, tmp_path / "run", Reporting(tmp_path / "run"))
    assert reported[0] == (32, 0.004) and reported[-1] == (192, 0.002)
