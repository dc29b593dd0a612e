"""A schedule that is made shorter or longer: by the formulas, for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel

from gan_train import recipes
from gan_train.adversary import Adversary, Clock, ImageShape
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.families.catalogue import FamilyConfig
from gan_train.runs.checkpoint import refuse_changes
from gan_train.training.fitting import FEWEST_STEPS, least_factor, schedule_of_run, stretched
from gan_train.training.schedule import checkpoints, schedule_end
from tests.training import stylegan, tiny_config

LETTERS = ImageShape(1, 32, ("a", "b", "c"))
ABSOLUTE = {"augment_kimg"}
"""Settings in kimg that are no part of a schedule: the speed of ADA's feedback."""
GROWTH = ["family.fade_kimg=5", "family.stable_kimg={4: 8, 8: 8, 16: 10, 32: 36}"]
"""A schedule of 77 kimg for the demo."""


def adversary_of(config: Config, shape: ImageShape = LETTERS) -> Adversary:
    with torch.device("meta"):  # its schedule is wanted, not its weights
        return config.family.build(shape, config.train.batch)


def fit(config: Config, factor: float, shape: ImageShape = LETTERS, **more: Any) -> Config:
    stages = adversary_of(config, shape).stages()
    return stretched(config, factor, stages, schedule_end(config, stages), **more)


def test_every_length_of_every_family_is_declared() -> None:
    members: list[type[BaseModel]] = list(get_args(get_args(FamilyConfig)[0]))
    assert len(members) >= 9
    for member in members:
        for name, field in member.model_fields.items():
            extra = field.json_schema_extra
            declared = isinstance(extra, dict) and extra.get("schedule") == "length"
            in_kimg = name.endswith("kimg") and name not in ABSOLUTE
            assert declared == in_kimg, f"{member.__name__}.{name}"


@pytest.mark.parametrize("factor", [0.5, 3.0])
@pytest.mark.parametrize("name", sorted(path.stem for path in recipes.SHIPPED.glob("*.yaml")))
def test_all_stages_keep_their_shares(name: str, factor: float) -> None:
    config = recipes.load(name)
    classes = ("a", "b") if config.data.classes == "folder" else ()
    shape = ImageShape(3, config.data.resolution, classes)
    before, after = (
        (c, adversary_of(c, shape).stages()) for c in (config, fit(config, factor, shape))
    )
    assert schedule_end(*after) == pytest.approx(factor * schedule_end(*before), abs=20)
    for old, new in zip(before[1], after[1], strict=True):
        assert new.nimg == pytest.approx(factor * old.nimg, abs=1)
        assert (new.name, new.resolution, new.batch, new.lr) == (
            *(old.name, old.resolution, old.batch, old.lr),
        )
    same = {"batch", "lr", "augment_kimg", "lr_floor", "w_mean_decay", "r1_every"}
    for key in same & type(config.family).model_fields.keys():
        assert getattr(after[0].family, key) == getattr(config.family, key)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("lapgan-glyphs", []),
        ("cgan-glyphs", ["family.optimizer=sgd", "family.betas=[0.5, 0.999]", "family.lr=0.1"]),
    ],
)
def test_rates_that_decay_step_by_step_end_where_they_ended(
    recipe: str, changes: list[str]
) -> None:
    config = recipes.load(recipe, changes)
    name = "D8" if recipe.startswith("lapgan") else "D"

    def last_rate(of: Config) -> float:
        adversary = adversary_of(of)
        (stage,) = adversary.stages()
        clock = Clock(stage.nimg // stage.batch, stage.nimg)
        return adversary.settings(name, adversary.optimizers()[name].settings, stage, clock).lr

    first = config.family.lr  # type: ignore[union-attr]
    assert first is not None and last_rate(config) < 0.9 * first
    for factor in (0.25, 4.0):
        assert last_rate(fit(config, factor)) == pytest.approx(last_rate(config), rel=1e-3)


@pytest.mark.parametrize("generation", [1, 2])
def test_settings_of_the_other_generation_stay(generation: int, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path, family=stylegan(generation), data__resolution=16)
    fitted = fit(config, 2, ImageShape(1, 16, ("a",))).family.model_dump()
    lengths = {"kimg": 25000.0, "fade_kimg": 600.0, "stable_kimg": 600.0}
    used = {1: {"fade_kimg": 0.128, "stable_kimg": 0.128}, 2: {"kimg": 0.384}}[generation]
    assert {name: fitted[name] for name in lengths} == lengths | used


def test_a_length_that_the_recipe_sets_is_stretched_too(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path, train__total_kimg=0.1)
    assert fit(config, 0.5).train.total_kimg == 0.05


def test_half_life_intervals_and_what_the_user_chose() -> None:
    config = recipes.load("demo", GROWTH)  # half-life 2, tick 1, samples 10, checkpoints 200
    longer = fit(config, 10).train
    assert (longer.ema_kimg, longer.tick_kimg) == (2, 1)
    assert (longer.sample_kimg, longer.checkpoint_kimg) == (100, 2000)
    rare = fit(config, 10, most_between_checkpoints=300.0).train
    assert rare.checkpoint_kimg == 300
    often = fit(config, 10, most_between_checkpoints=3.0).train
    assert often.checkpoint_kimg == 200, "never more often than the recipe"
    shorter = fit(config, 0.25, most_between_checkpoints=3.0).train
    assert (shorter.sample_kimg, shorter.checkpoint_kimg) == (2.5, 50)
    assert shorter.tick_kimg == 0.32, "ten steps of 32 images are more than a quarter"
    assert shorter.ema_kimg == pytest.approx(0.05 * 77 * 0.25, abs=1e-3)
    assert shorter.ema_ramp == config.train.ema_ramp
    chosen = ("train.ema_kimg", "train.checkpoint_kimg", "train.batch")
    kept = fit(config, 0.25, chosen=chosen).train
    assert (kept.ema_kimg, kept.checkpoint_kimg, kept.sample_kimg) == (2, 200, 2.5)


def test_the_number_of_checkpoints_stays() -> None:
    config = recipes.load("stylegan2-glyphs")

    def count(of: Config) -> int:
        stages = adversary_of(of).stages()
        return len(checkpoints(of, stages, schedule_end(of, stages)))

    assert count(config) == count(fit(config, 0.3)) == count(fit(config, 7)) == 3


def test_the_least_factor_leaves_some_steps_in_every_stage(tmp_path: Path) -> None:
    config = recipes.load("demo", GROWTH)
    stages = adversary_of(config).stages()
    end = schedule_end(config, stages)
    least = least_factor(stages, end)
    assert least == FEWEST_STEPS * 32 / 5000, "the fades of 5 kimg are the shortest stages"
    shortest = min(stage.nimg for stage in adversary_of(fit(config, least)).stages())
    assert shortest == FEWEST_STEPS * 32
    assert least_factor(stages, 8000) == FEWEST_STEPS * 32 / 8000, "later stages are not reached"
    tiny = adversary_of(tiny_config(tmp_path, tmp_path), ImageShape(1, 8, ("a",))).stages()
    assert least_factor(tiny, 192) == 1, "four steps are not made fewer"


def test_a_resumed_run_keeps_the_schedule_it_was_fitted_to() -> None:
    recipe = recipes.load("demo", GROWTH)
    started = recipes.change(fit(recipe, 0.5), {"train.fitted_minutes": 3})
    with pytest.raises(UserError, match="stable_kimg"):
        refuse_changes(started.model_dump(mode="json"), recipe)
    resumed = schedule_of_run(recipe, started)
    assert resumed == started
    refuse_changes(started.model_dump(mode="json"), resumed)

    # other differences are not hidden, and what the user has set for this resumption holds
    changed = ["family.lr=0.1", "train.total_kimg=90", "train.threads=2"]
    other = recipes.load("demo", [*GROWTH, *changed])
    resumed = schedule_of_run(other, started, ["family.lr", "train.total_kimg", "train.threads"])
    assert resumed.train.total_kimg == 90 and resumed.train.threads == 2
    with pytest.raises(UserError, match=r"family.lr: 0.004 -> 0.1\."):
        refuse_changes(started.model_dump(mode="json"), resumed)
    part = schedule_of_run(recipe, started, ["family.stable_kimg.32"]).family.model_dump()
    assert part["stable_kimg"] == recipe.family.model_dump()["stable_kimg"], "chosen in part"
    assert part["fade_kimg"] == 2.5
    assert schedule_of_run(recipe, recipe) == recipe, "a run that was not fitted gives nothing"
