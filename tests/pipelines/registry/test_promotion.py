"""Who becomes champion, which checkpoint is the best, and what the model card says: no MLflow."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gan_train import recipes
from gan_train.config import Config
from pipelines.registry.evidence import Deviation
from pipelines.registry.model_card import LIMIT, CardFacts, model_card, score_rows
from pipelines.registry.promotion import (
    BLOCKS_TAG,
    RECIPE_TAG,
    RESCORED_TAG,
    Decision,
    Standing,
    best_checkpoint,
    decide,
    deviation_between_seeds,
    event_standing,
    refusal,
    scores_of_equals,
    sure_of,
    version_standing,
)
from tests.pipelines.registry_runs import METRIC, config, index, protocol

DATA, OTHER_DATA = index(), index("other")
FD = protocol(DATA)
INCEPTION = FD | {"extractor": "inception_v3_2015_12_05", "weights": "cd" * 32}


def score(value: float, how: dict[str, Any] = FD, metric: str = METRIC) -> Standing:
    return Standing("version 3", metric, value, how)


@pytest.mark.parametrize(
    ("candidate", "champion", "alias", "because"),
    [
        (score(40.0), None, "champion", "first scored version"),
        (score(39.9), score(40.0), "champion", "better than 40"),
        (score(40.0), score(40.0), "challenger", "equals"),
        (score(40.1), score(40.0), "challenger", "worse than 40"),
        (score(1.0, protocol(OTHER_DATA)), score(40.0), "challenger", "not comparable"),
        (score(1.0, protocol(DATA, images=500)), score(40.0), "challenger", "not comparable"),
        (score(1.0, FD | {"resize": "box 224"}), score(40.0), "challenger", "not comparable"),
        (score(1.0, INCEPTION), score(40.0), "challenger", "not comparable"),
        (score(1.0, INCEPTION, "fid"), score(40.0), "challenger", "different metrics"),
        (score(math.nan), score(40.0), "challenger", "no number"),
        (score(math.nan), None, "challenger", "no number"),
        (score(-math.inf), score(40.0), "challenger", "no number"),
        (score(99.0), score(math.nan), "champion", "is no number"),
    ],
)
def test_alias_and_reason(
    candidate: Standing, champion: Standing | None, alias: str, because: str
) -> None:
    decision = decide(candidate, champion)
    assert decision.alias == alias
    assert because in decision.reason
    if champion is not None and "no number" not in decision.reason:
        assert "version 3" in decision.reason


@pytest.mark.parametrize(
    ("candidate", "alias", "reason"),
    [
        (
            40.0,
            "champion",
            f"{METRIC} 40.0 ± 0.6 is better than 50.0 ± 0.6 of champion version 3, 99% sure "
            "(between seeds 1.9, known from 5 trainings)",
        ),
        (
            49.0,
            "challenger",
            f"{METRIC} 49.0 ± 0.6 ties with 50.0 ± 0.6 of champion version 3, which stays: better "
            "by 64% (between seeds 1.9, known from 5 trainings); no number of images would decide, "
            "33 trainings of each would",
        ),
        (
            60.0,
            "challenger",
            f"{METRIC} 60.0 ± 0.6 is worse than 50.0 ± 0.6 of champion version 3, 99% sure "
            "(between seeds 1.9, known from 5 trainings)",
        ),
    ],
)
def test_better_tie_or_worse(candidate: float, alias: str, reason: str) -> None:
    known = Deviation(1.9, 4, "known from 5 trainings")
    new, now = (replace(score(value), error=0.6) for value in (candidate, 50.0))
    assert decide(new, now, known) == Decision(alias, reason)
    # a champion of an earlier version of this project: its error is as large
    assert decide(new, score(50.0), known).alias == alias
    assert decide(score(candidate), now, known).alias == alias
    # equal scores are a tie whatever is known
    assert "equals" in decide(now, now, known).reason


@pytest.mark.parametrize(
    ("candidate", "alias", "reason"),
    [
        (
            40.0,
            "champion",
            f"{METRIC} 40.0 ± 0.6 is better than the mean 55 of 5 trainings like champion "
            "version 3 (50.0 ± 0.6), 98% sure (between seeds 4.7, known from 5 trainings)",
        ),
        (
            49.0,
            "challenger",
            f"{METRIC} 49.0 ± 0.6 ties with the mean 55 of 5 trainings like champion version 3 "
            "(50.0 ± 0.6), which stays: better by 85% (between seeds 4.7, known from 5 trainings); "
            "no number of images would decide, 4 trainings of each would",
        ),
        (
            51.0,
            "challenger",
            f"{METRIC} 51.0 ± 0.6 ties with 50.0 ± 0.6 of champion version 3, which stays: better "
            "by 44% (between seeds 4.7, known from 5 trainings); no number of images would decide, "
            "201 trainings of each would",
        ),
    ],
)
def test_another_configuration_is_compared_with_the_mean_of_the_champions_equals(
    candidate: float, alias: str, reason: str
) -> None:
    known = Deviation(4.7, 4, "known from 5 trainings")
    equals = [50.0, 52.0, 54.0, 58.0, 61.0]
    new, now = (replace(score(value), error=0.6) for value in (candidate, 50.0))
    assert decide(new, now, known, equals) == Decision(alias, reason)
    # the first version of a configuration is its own mean, and where nothing is known of seeds
    # there is nothing to compare a mean with
    assert decide(new, now, known, [50.0]) == decide(new, now, known)
    assert decide(new, now, None, equals) == decide(new, now, None)
    # a champion that is worse than its equals, made by hand say, is not held to their mean
    unlucky = [replace(score(value), error=0.6) for value in (44.0, 60.0)]
    decision = decide(*unlucky, Deviation(3.0, 9, "known"), [60.0, 45.0, 46.0, 44.0, 44.0])
    assert decision.alias == "champion" and "better than 60.0 ± 0.6 of" in decision.reason
    # one that goes on from other networks shares their luck
    continued = replace(new, continued=True)
    assert decide(continued, now, known, equals) == decide(continued, now, known)


def test_the_champion_never_gets_worse_for_the_sake_of_a_mean() -> None:
    """A champion that had much luck: the recipe is better than its recipe, the version is not."""
    known, equals = Deviation(5.0, 9, "known from 10 trainings"), [40.0] + [60.0] * 9
    now = replace(score(40.0), error=0.6)
    near, above, far = (replace(score(value), error=0.6) for value in (39.8, 40.2, 38.0))
    decision = decide(near, now, known, equals)
    assert decision.alias == "challenger" and decision.reason == (
        f"{METRIC} 39.8 ± 0.6 is better than the mean 58 of 10 trainings like champion version 3 "
        "(40.0 ± 0.6), 99.6% sure (between seeds 5, known from 10 trainings), but it ties with "
        "that champion itself, which stays"
    )
    assert decide(above, now, known, equals).alias == "challenger"
    assert decide(far, now, known, equals).alias == "champion"
    # scores of earlier versions of this project have no error
    assert decide(score(39.8), score(40.0), known, equals).alias == "champion"


def test_equals_are_the_trainings_that_differ_in_their_seed_alone() -> None:
    def tags(recipe: str, value: float) -> dict[str, str]:
        known = {"metric": METRIC, "score": str(value), "protocol": json.dumps(FD)}
        return known | ({RECIPE_TAG: recipe} if recipe else {})

    a, b, unknown = tags("a", 50.0), tags("b", 20.0), tags("", 10.0)
    versions = [("1", a), ("2", tags("a", 54.0)), ("3", b), ("4", tags("a", math.nan)), ("5", {})]
    assert scores_of_equals(versions, a, b, score(1.0)) == [50.0, 54.0]
    assert scores_of_equals(versions, a, tags("a", 1.0), score(1.0)) == []
    assert scores_of_equals(versions, unknown, b, score(1.0)) == []
    assert scores_of_equals(versions, a, unknown, score(1.0)) == []
    assert scores_of_equals(versions, a, b, score(1.0, protocol(OTHER_DATA))) == []


def test_a_sentence_says_whether_chance_explains_a_difference() -> None:
    known = Deviation(1.9, 4, "known from 5 trainings")
    a, near, far = (replace(score(value), error=0.6) for value in (50.0, 49.0, 40.0))
    tie = (
        "Between two trainings that is a tie: 64% sure, where better takes 95% (between seeds 1.9, "
        "known from 5 trainings); "
        "no number of images would decide, 33 trainings of each would."
    )
    assert sure_of(near, a, known) == sure_of(a, near, known) == tie
    how = "between seeds 1.9, known from 5 trainings"
    better = f"Between two trainings that is better, 99% sure ({how})."
    assert sure_of(far, a, known) == sure_of(a, far, known) == better
    for other in (a, score(math.nan), replace(far, protocol=INCEPTION), score(40.0, INCEPTION)):
        assert sure_of(other, a, known) is None
    assert sure_of(score(40.0), score(50.0), known) is None, "neither has an error"


def test_the_deviation_between_seeds_comes_from_equal_configurations() -> None:
    def tags(recipe: str, value: float, how: dict[str, Any] = FD) -> dict[str, str]:
        known = {"metric": METRIC, "score": str(value), "protocol": json.dumps(how)}
        return known | ({RECIPE_TAG: recipe} if recipe else {})

    like = score(50.0)
    history = [
        ("run-1", tags("a", 90.0)),
        ("run-1", tags("a", 50.0)),  # the newest of a run counts
        ("run-2", tags("a", 54.0)),
        ("run-3", tags("b", 20.0)),
        ("run-4", tags("b", 24.0)),
        ("run-5", tags("c", 70.0)),
        ("run-6", tags("a", 5.0, protocol(OTHER_DATA))),
        ("run-7", tags("a", math.nan)),
        ("run-8", tags("", 1.0)),
    ]
    found = deviation_between_seeds(history, like)
    assert found == Deviation(math.sqrt(8), 2, "known from 4 trainings")
    assert deviation_between_seeds(history[:3], like) is None


def test_the_reason_names_what_differs() -> None:
    assert "500" in decide(score(1.0, protocol(DATA, images=500)), score(40.0)).reason


@pytest.mark.parametrize(
    ("new", "now", "refused"),
    [
        (score(40.0), None, False),
        (score(99.0), score(40.0), False),  # a person may prefer the worse score
        (score(1.0, INCEPTION), score(40.0), True),
        (score(math.nan), score(40.0), True),
        (score(math.nan), None, True),
    ],
)
def test_promotion_by_hand(new: Standing, now: Standing | None, refused: bool) -> None:
    assert (refusal(new, now) is not None) == refused


def checkpoint(nimg: int, value: float | None, how: dict[str, Any] = FD) -> dict[str, Any]:
    scores = {} if value is None else {METRIC: value}
    return {"kind": "checkpoint", "nimg": nimg, "scores": scores, "protocol": how}


@pytest.mark.parametrize(
    ("events", "best"),
    [
        ([checkpoint(1, 50.0), checkpoint(2, 40.0), checkpoint(3, 45.0)], 2),
        ([checkpoint(1, 40.0), checkpoint(2, 40.0)], 1),
        ([checkpoint(1, 40.0), checkpoint(2, math.nan)], 1),
        ([checkpoint(1, None), checkpoint(2, 40.0)], 2),
        # scored otherwise from the second on: the first is out, however low
        ([checkpoint(1, 4.0, INCEPTION), checkpoint(2, 50.0), checkpoint(3, 60.0)], 2),
        ([checkpoint(1, math.nan)], None),
        ([checkpoint(1, None), {"kind": "metrics", "nimg": 1, "values": {METRIC: 1.0}}], None),
        ([], None),
    ],
)
def test_best_checkpoint(events: list[dict[str, Any]], best: int | None) -> None:
    found = best_checkpoint(events)
    assert (found and found["nimg"]) == best


def test_an_unscored_checkpoint_has_no_score() -> None:
    assert event_standing({"kind": "checkpoint", "nimg": 1, "path": "x"}) is None
    assert event_standing(checkpoint(2_000, 40.0)) == Standing(
        "the checkpoint at 2,000 images", METRIC, 40.0, FD
    )


# ---- the model card ----------------------------------------------------------------------------


def facts(**changes: Any) -> CardFacts:
    return CardFacts(
        **{
            "model": "progan-tiny",
            "nimg": 123_456,
            "scores": {"precision": 0.5, METRIC: 83.61, f"{METRIC}_null": 5.4},
            "protocol": FD,
            "metric": METRIC,
            "chosen": None,
            "deviation": None,
            "task": "generate",
            "z_dim": 8,
            "conditional": True,
            "precision": "bf16",
            "run_id": "run7",
            "picture": "model_card/a b.png",
            "commit": "0123456789abcdef",
            "library": "0.1.0",
            "config_hash": "fe" * 32,
            "lineage": ["run [demo](#/experiments/1/runs/run7)"],
        }
        | changes
    )


def settings(tmp_path: Path) -> Config:
    return config(tmp_path)


def test_card_tells_what_a_reader_needs(tmp_path: Path) -> None:
    text = model_card(settings(tmp_path), DATA, facts())
    for told in (
        "8x8 pixels",
        "3 classes: 7, A, B",
        "123,456 real images",
        "licence: OFL-1.1",
        "get-artifact?path=model_card%2Fa+b.png&run_uuid=run7",
        'models:/progan-tiny@champion")',
        '"label": "7"',
        DATA.content_hash[:16],
        "gan-train 0.1.0, commit `0123456789ab`",
        "fefefefe",
        "images 2000",
        "### Lineage\n\n- run [demo](#/experiments/1/runs/run7)",
    ):
        assert told in text


def test_card_without_picture_commit_and_classes(tmp_path: Path) -> None:
    plain = settings(tmp_path)
    bare = facts(picture=None, commit=None, library=None, conditional=False)
    text = model_card(recipes.change(plain, {"data.licence": None}), DATA, bare)
    assert (
        "![" not in text
        and "commit" not in text
        and "gan-train 0" not in text
        and '"label"' not in text
    )
    assert "licence: not recorded" in text


def test_card_tells_of_chance_and_choice(tmp_path: Path) -> None:
    scores = {METRIC: 54.41, f"{METRIC}_se": 0.62, f"{METRIC}_null": 5.4}
    known = Deviation(1.93, 4, "known from 5 trainings")
    told = model_card(
        settings(tmp_path), DATA, facts(scores=scores, chosen="52.1 ± 0.6", deviation=known)
    )
    for words in (
        f"| {METRIC} &nbsp;&nbsp; | 54.4 ± 0.6 &nbsp;&nbsp; | 5.4 |",
        "± is one standard error over samples",
        "seed alone deviate by 1.93 (known from 5 trainings)",
        "was chosen by 52.1 ± 0.6, on other latents",
    ):
        assert words in told


def test_null_stands_beside_its_distance() -> None:
    scores = facts().scores | {"pair_distance": 10.0, "pair_distance_real": 12.9}
    assert score_rows(scores, METRIC) == [
        (METRIC, "83.6", "5.4"),
        ("precision", "0.5", "–"),
        ("pair_distance", "10", "12.9"),
    ]


PATHS = {
    "path_length_images": 50_000,
    "path_length_epsilon": "0.0001",
    "perceptual": "efficientnet_lite0",
    "perceptual_resize": "bilinear128",
    "perceptual_weights": "ef" * 32,
}


def test_path_lengths_stand_beside_the_score_and_decide_nothing(tmp_path: Path) -> None:
    name = "ppl_w_end_efficientnet_lite0"
    text = model_card(
        settings(tmp_path), DATA, facts(scores={name: 123.45, METRIC: 80.0}, protocol=FD | PATHS)
    )
    assert f"| {name} &nbsp;&nbsp; | 123 &nbsp;&nbsp; | – |" in text
    for told in (
        "path_length_images 50000",
        "perceptual_resize bilinear128",
        f"`{METRIC}` decides",
    ):
        assert told in text
    assert decide(score(39.0, FD | PATHS), score(40.0)).alias == "champion"
    other = FD | PATHS | {"perceptual": "lpips_vgg16", "path_length_images": 2000}
    assert decide(score(39.0, FD | PATHS), score(40.0, other)).alias == "champion"


def test_card_fits_the_database(tmp_path: Path) -> None:
    many = DATA.model_copy(update={"classes": tuple(f"{i}" * 200 for i in range(1000))})
    scores = {METRIC: 1.0} | {f"measure_number_{i:03d}": 0.5 for i in range(100)}
    long = settings(tmp_path)
    long = recipes.change(
        long, {"data.source": "x" * 250 + "/" + "x" * 249, "data.licence": "y" * 4000}
    )
    assert len(model_card(long, many, facts(scores=scores, protocol=FD | PATHS))) <= LIMIT
    links = [f"run [x](https://{'y' * 5000}.example)"]
    text = model_card(long, many, facts(scores=scores, protocol=FD | PATHS, lineage=links))
    assert len(text) <= LIMIT and "Lineage" not in text and "### Use" in text


@pytest.mark.parametrize(
    ("task", "told"),
    [
        (
            "upscale",
            ["upscales pictures", "| bicubic |", "gan-train upscale picture.jpg"],
        ),
        ("translate", ["from one domain to the other, both ways", '"to": "B"', "--to B"]),
    ],
)
def test_card_of_a_family_that_takes_pictures(tmp_path: Path, task: str, told: list[str]) -> None:
    scores = {"perceptual": 0.2, "perceptual_bicubic": 0.4}
    text = model_card(
        settings(tmp_path), DATA, facts(task=task, scores=scores, metric="perceptual")
    )
    for words in [*told, "| 0.2 &nbsp;&nbsp; | 0.4 |"]:
        assert words in text
    assert "latents" not in text and "null value" not in text


def test_a_champion_is_compared_by_its_score_on_the_new_data() -> None:
    """A set that grows has another content hash every night."""
    new = protocol(OTHER_DATA)
    tags = {"metric": METRIC, "score": "40.0", "protocol": json.dumps(FD)}
    assert version_standing(2, tags) == Standing("version 2", METRIC, 40.0, FD)
    assert version_standing(2, tags, new).protocol == FD, "it has no other score"
    later = {"scores": {METRIC: 45.5, "kid": 0.1}, "protocol": new}
    tags |= {RESCORED_TAG: json.dumps(later)}
    assert version_standing(2, tags).value == 40.0
    assert version_standing(2, tags, FD).value == 40.0
    assert version_standing("2", tags, new) == Standing("version 2", METRIC, 45.5, new)
    assert version_standing(2, tags, protocol(OTHER_DATA, images=500)).value == 40.0
    worse = Standing("version 3", METRIC, 42.0, new)
    assert decide(worse, version_standing(2, tags)).alias == "challenger"
    assert decide(worse, version_standing(2, tags, new)).alias == "champion"
    more = later | {"scores": {METRIC: 45.5, f"{METRIC}_se": 0.7}, "blocks": [1.0, -1.0]}
    found = version_standing(2, tags | {RESCORED_TAG: json.dumps(more)}, new)
    assert (found.error, found.blocks) == (0.7, (1.0, -1.0))
    own = {"scores": json.dumps({METRIC: 40.0, f"{METRIC}_se": 0.5}), BLOCKS_TAG: "[2.0, -2.0]"}
    found = version_standing(2, tags | own)
    assert (found.error, found.blocks, found.text) == (0.5, (2.0, -2.0), "40.0 ± 0.5")
    assert version_standing(1, {}, new).metric == "none", "an import, which has no score"
