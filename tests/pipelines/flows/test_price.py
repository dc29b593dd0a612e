"""What a run is expected to cost, and a schedule that is fitted to a time: by the formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gan_train import recipes
from gan_train.bench import counting
from gan_train.bench.counting import Counted
from gan_train.bench.rehearsal import Rehearsed
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.planning import ShardPlan
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.training.fitting import FEWEST_STEPS
from pipelines.flows import plan, price
from pipelines.flows.price import AIM, Prices, change_in_words, fitted
from tests.training import tiny_config

SPEEDS = {"4": 0.5, "8-fade": 0.25, "8": 0.2}  # images per second
STAGES = {"4": 64, "8-fade": 64, "8": 64}


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price.os, "cpu_count", lambda: 2)


def measured(**changes: Any) -> Rehearsed:
    seconds = {name: 1 / speed for name, speed in SPEEDS.items()}
    return Rehearsed(**({"seconds": seconds, "scoring": 0.5, "memory_gib": 1.0} | changes))


def prices_of(
    config: Config, rehearsed: Rehearsed, monkeypatch: pytest.MonkeyPatch, **more: Any
) -> tuple[Prices, ShardPlan]:
    asked: list[tuple[int, int, int]] = []

    def rehearse(config: Config, shape: Any, workers: int, world: int, threads: int) -> Rehearsed:
        asked.append((workers, world, threads))
        return rehearsed

    monkeypatch.setattr(price, "rehearse", rehearse)
    data = plan.precheck(config)
    prices = Prices(config, data, plan.image_shape(config, data), **more)
    prices.asked = asked  # type: ignore[attr-defined]
    return prices, data


def fit(config: Config, minutes: float, prices: Prices, data: ShardPlan, **more: Any) -> Config:
    return fitted(config, minutes, prices, plan.image_shape(config, data), **more)


def test_the_parts_of_a_price(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tiny_source, tmp_path, cluster__workers=2)
    prices, _ = prices_of(config, measured(), monkeypatch)
    assert prices.asked == [(2, 2, 1)]  # type: ignore[attr-defined]
    found = prices.of(config)
    kept = 1 - price.LOST_ON_ALL_CORES
    assert [part.images for part in found.stages] == [64, 64, 64]
    assert found.training == pytest.approx(sum(64 / s / kept for s in SPEEDS.values()))
    # 24 images, of which 16 are scored at 4 and at 8 pixels, and once 24 real ones
    assert found.scorings == 2
    assert found.scoring == pytest.approx((16 + 16 + 24) * 0.5 + 2 * price.MEASURES_S)
    scored = recipes.change(config, {"evaluate.metrics": ["frechet"]})
    again = prices.of(scored).scoring  # the best one is scored once more
    assert again == pytest.approx(found.scoring + 16 * 0.5 + price.MEASURES_S)
    assert found.ends == price.START_S + price.END_S and found.sharding > 0
    assert found.beside == pytest.approx(found.scoring + found.sharding + found.ends)
    assert prices.memory_gib == pytest.approx(1 + price.MORE_GIB, abs=1e-4)


def test_what_is_there_already_costs_nothing(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tiny_source, tmp_path)
    index = Index.load(shard(config.data, tmp_path))
    prices, _ = prices_of(config, measured(), monkeypatch)
    before = prices.of(config)
    assert before.sharding == 0 and before.scoring is not None
    # an earlier run has stored what real images get
    (tmp_path / "statistics" / index.content_hash[:16] / "pixels-n16").mkdir(parents=True)
    prices, _ = prices_of(config, measured(), monkeypatch)
    after = prices.of(config).scoring
    assert after is not None and before.scoring - after == pytest.approx(24 * 0.5)


def test_a_core_to_spare_a_cluster_and_a_plain_process(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tiny_source, tmp_path, train__threads=1)
    spare, _ = prices_of(config, measured(), monkeypatch)
    part = spare.of(config).stages[0]
    kept = 1 - price.LOST_WITH_A_CORE_TO_SPARE
    assert part.seconds_per_image == pytest.approx(1 / SPEEDS["4"] / kept) and part.measured
    cluster = recipes.change(config, {"cluster.address": "auto", "cluster.workers": 4})
    elsewhere, _ = prices_of(cluster, measured(), monkeypatch)
    assert elsewhere.asked == [(4, 1, 1)] and elsewhere.elsewhere  # type: ignore[attr-defined]
    plain, _ = prices_of(cluster, measured(), monkeypatch, plain=True)
    assert plain.asked == [(1, 1, 1)]  # type: ignore[attr-defined]
    assert plain.of(config).ends == price.PLAIN_S
    assert plain.of(config).stages[0].seconds_per_image == 1 / SPEEDS["4"]


def test_stages_that_were_not_tried_are_estimated_by_their_operations(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tiny_source, tmp_path, train__threads=1)
    counts = {"4": Counted(10, 0, 0), "8": Counted(50, 0, 0)}
    monkeypatch.setattr(counting, "count", lambda config, shape, names: counts)
    prices, data = prices_of(config, measured(seconds={"4": 2.0}), monkeypatch)
    parts = prices.of(config).stages
    kept = 1 - price.LOST_WITH_A_CORE_TO_SPARE
    assert [p.seconds_per_image for p in parts] == pytest.approx([2 / kept, 10 / kept, 10 / kept])
    assert [part.measured for part in parts] == [True, False, False]
    text = plan.describe(config, data, prices)
    assert "~ 8-fade, 8: by counted operations" in text and "about " in text

    monkeypatch.setattr(counting, "attainable", lambda device, dtype: {"convolution": 100.0})
    prices, _ = prices_of(config, measured(seconds={}), monkeypatch)
    first = prices.of(config).stages[0].seconds_per_image
    assert first == pytest.approx(10 / (100 * counting.EFFICIENCY) / kept)

    monkeypatch.setattr(counting, "count", lambda config, shape, names: {})
    prices, data = prices_of(config, measured(seconds={}), monkeypatch)
    assert prices.of(config).training is None
    assert "time        not predicted" in plan.describe(config, data, prices)
    with pytest.raises(UserError, match=r"cannot be predicted on this machine"):
        fit(config, 5, prices, data)


def test_without_the_gpus_that_it_requires_only_memory_is_estimated(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tiny_source, tmp_path, cluster__gpu="yes")
    monkeypatch.setattr(price.torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(
        price, "count", lambda config, shape, names: {"8": Counted(1, 2**30, 2**30)}
    )
    prices, data = prices_of(config, measured(), monkeypatch)
    assert prices.asked == [] and prices.lacks_gpus  # type: ignore[attr-defined]
    assert prices.memory_gib == 1 + config.train.batch
    text = plan.describe(config, data, prices)
    assert "this machine has fewer than 1 GPUs" in text
    assert "memory      17 GiB a worker, of a GPU, estimated" in text


@pytest.mark.parametrize("minutes", [8, 60, 1000])
def test_a_fitted_schedule_takes_the_time(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float
) -> None:
    changes = {"fade_kimg": 0.64, "stable_kimg": 0.64}
    config = tiny_config(tiny_source, tmp_path)
    config = recipes.change(config, {f"family.{key}": value for key, value in changes.items()})
    quick = measured(seconds={name: 0.05 / speed for name, speed in SPEEDS.items()})
    prices, data = prices_of(config, quick, monkeypatch)
    found = fit(config, minutes, prices, data)
    cost = prices.of(found)
    assert cost.training is not None
    assert cost.training + cost.beside == pytest.approx(AIM * 60 * minutes, rel=0.02)
    assert found.train.fitted_minutes == minutes
    assert fit(config, minutes, prices, data) == found
    images = {part.stage.name: part.images for part in cost.stages}
    assert images["4"] == pytest.approx(images["8"], abs=1), "stages keep their shares"
    between = found.train.checkpoint_kimg * 1000 * (cost.stages[-1].seconds_per_image or 0)
    assert between <= max(
        price.MOST_S_BETWEEN_CHECKPOINTS * 1.01,
        config.train.checkpoint_kimg * 1000 * (cost.stages[-1].seconds_per_image or 0),
    )
    assert f"fitted to {minutes:g} min" in change_in_words(config, found)


def test_too_little_time_is_refused_and_the_least_is_named(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(tiny_source, tmp_path)
    config = recipes.change(config, {"family.fade_kimg": 0.64, "family.stable_kimg": 0.64})
    prices, data = prices_of(config, measured(), monkeypatch)
    with pytest.raises(UserError, match="too short for tiny; allowed: ") as refused:
        fit(config, 0.5, prices, data)
    least = float(str(refused.value).partition("allowed: ")[2].split()[0])
    shortest = prices.of(fit(config, least, prices, data)).stages
    assert min(part.images for part in shortest) >= FEWEST_STEPS * config.train.batch
    with pytest.raises(UserError, match="too short"):
        fit(config, least - 0.2, prices, data)
    with pytest.raises(UserError, match=r"--minutes 0: allowed: more than 0"):
        fit(config, 0, prices, data)
