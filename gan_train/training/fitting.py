"""Makes the schedule of a configuration shorter or longer: pure functions, which read no clock.

A fitted schedule is a configuration like any other, with other numbers at these keys:

- Every length in images of the family (stages, fades, the part in which the rate falls) and
  `train.total_kimg` are multiplied by one factor. The stages keep their shares of the run.
- Rates that decay by a factor at every step decay so much faster or slower that they end where
  they would have ended. Rates and momenta that follow the progress do so by themselves.
- `train.ema_kimg` stays: `train.ema_ramp` keeps the half-life below a fraction of the images seen.
  It is lowered where it would be more than a twentieth of the run, and a larger share than before.
- Grids of samples and checkpoints keep their number. Where the schedule becomes longer, no more
  images lie between two checkpoints than the caller allows.
- Losses are logged more often in a shorter schedule, and as often in a longer one.

What counts steps or images for another reason than the length of the run stays: batches, learning
rates, the intervals of lazy regularisers, running means, and the speed of ADA
(`family.augment_kimg`), which is a property of the feedback and not of the schedule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from gan_train import recipes
from gan_train.adversary import Stage
from gan_train.config import Config
from gan_train.nn.schedules import PartlyUnused
from gan_train.training.schedule import stage_at

FEWEST_STEPS = 20
"""A stage that has fewer steps teaches its networks nothing that could be seen."""
_LARGEST_EMA = 0.05
"""The largest share of a run that the half-life of the average weights gets by fitting: that of
`train.ema_ramp` by default."""
_STEPS_PER_TICK = 10
_INTERVALS = ("train.tick_kimg", "train.sample_kimg", "train.checkpoint_kimg")
_OTHERS = ("train.total_kimg", "train.ema_kimg", "train.patience_kimg", "train.fitted_minutes")


def stretched(
    config: Config,
    factor: float,
    stages: Sequence[Stage],
    end: int,
    most_between_checkpoints: float | None = None,
    chosen: Sequence[str] = (),
) -> Config:
    """The configuration with a schedule `factor` times as long.

    `stages` and `end` (in images) are its schedule as it is. `most_between_checkpoints`, in
    thousands of images, counts where the schedule becomes longer. `chosen` has the keys that the
    user has set: among them, intervals and `train.ema_kimg` keep their values.
    """
    t, kimg = config.train, end / 1000
    changes = {
        f"family.{name}": _followed(value, kind, factor)
        for name, value, kind in _followers(config.family)
    }
    if t.total_kimg is not None:
        changes["train.total_kimg"] = _scaled(t.total_kimg, factor)
    largest = max(_LARGEST_EMA * kimg * factor, t.ema_kimg * factor)
    changes["train.ema_kimg"] = min(t.ema_kimg, round(largest, 3))

    ticks = _STEPS_PER_TICK * max(stage.batch for stage in stages) / 1000
    if factor < 1:
        changes["train.tick_kimg"] = max(_scaled(t.tick_kimg, factor), min(t.tick_kimg, ticks))
    changes["train.sample_kimg"] = _scaled(t.sample_kimg, factor)
    between = _scaled(t.checkpoint_kimg, factor)
    if factor > 1 and most_between_checkpoints is not None:
        between = max(t.checkpoint_kimg, min(between, round(most_between_checkpoints, 3)))
    changes["train.checkpoint_kimg"] = between
    if t.patience_kimg is not None:
        changes["train.patience_kimg"] = _scaled(t.patience_kimg, factor)
    kept = {"train.ema_kimg", "train.patience_kimg", *_INTERVALS} & set(chosen)
    return recipes.change(config, {key: v for key, v in changes.items() if key not in kept})


def least_factor(stages: Sequence[Stage], end: int) -> float:
    """The smallest factor that leaves `FEWEST_STEPS` steps in every stage that is reached before
    `end` images, or all of them where there are fewer; at most 1."""
    least, start = 0.0, 0
    while start < end:
        stage, until = stage_at(stages, start, end)
        least = max(least, min(1.0, FEWEST_STEPS * stage.batch / (until - start)))
        start = until
    return least


def schedule_of_run(config: Config, started: Config, chosen: Sequence[str] = ()) -> Config:
    """The configuration for going on with a run that was `started` with another one.

    If the run's schedule was fitted to a time, it holds: a recipe tells the schedule from before
    that. The keys in `chosen`, which the user has set for this resumption, keep their values.
    """
    if started.train.fitted_minutes is None:
        return config
    tree = started.model_dump(mode="json")
    same_family = started.family.name == config.family.name
    keys = [f"family.{name}" for name, _, _ in _followers(started.family) if same_family]
    changes = {}
    for key in [*keys, *_INTERVALS, *_OTHERS]:
        group, name = key.split(".")
        if not any(one == key or one.startswith(f"{key}.") for one in chosen):
            changes[key] = tree[group][name]
    return recipes.change(config, changes)


def _followers(settings: BaseModel) -> Iterator[tuple[str, Any, str]]:
    """The name, the value, and the kind (`nn.schedules.Follows`) of every setting of a family that
    follows the length of its schedule."""
    unused = settings.unused if isinstance(settings, PartlyUnused) else ()
    for name, field in type(settings).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and "schedule" in extra and name not in unused:
            yield name, getattr(settings, name), str(extra["schedule"])


def _followed(value: Any, kind: str, factor: float) -> Any:
    if isinstance(value, dict):
        return {key: _followed(one, kind, factor) for key, one in value.items()}
    if kind == "length":
        return _scaled(value, factor)
    if kind == "factor per step":
        return value ** (1 / factor)
    assert kind == "increment per step"
    return (1 + value) ** (1 / factor) - 1


def _scaled(kimg: float, factor: float) -> float:
    """A length in thousands of images, `factor` times as long, in whole images."""
    return max(round(kimg * factor, 3), 0.001) if kimg > 0 else kimg
