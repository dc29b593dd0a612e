"""The gate's errors, by simulated trainings: how often luck passes, and how often progress."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pipelines.registry.evidence import (
    Comparison,
    Deviation,
    Measured,
    beyond_samples,
    compare,
    compare_means,
    compare_with_mean,
    correlation,
    deviation_of,
    error_of_mean,
    given,
    percent,
)

SEEDS, SAMPLES = 3.0, 1.0  # deviations
BOTH = math.hypot(SEEDS, SAMPLES)
TRAININGS = 20


def measured(value: float, error: float = SAMPLES, blocks: tuple[float, ...] = ()) -> Measured:
    return Measured(value, error, 2000, blocks)


def drawn(count: int, seed: int, better: float = 0.0) -> np.ndarray:
    return 50 - better + BOTH * np.random.default_rng(seed).standard_normal(count)


def passes(scores: np.ndarray, others: np.ndarray, known: Deviation | None) -> float:
    pairs = zip(scores, others, strict=True)
    found = [compare(measured(a), measured(b), known, continued=True) for a, b in pairs]
    return float(np.mean([one.verdict == "better" for one in found]))


@pytest.mark.parametrize("known", [given(BOTH), None])
def test_equal_trainings_pass_once_in_twenty(known: Deviation | None) -> None:
    """Also where the deviation is assumed and the assumption is right."""
    assert passes(drawn(4000, 1), drawn(4000, 2), known) == pytest.approx(0.05, abs=0.012)


def test_few_known_trainings_do_not_make_the_gate_lax() -> None:
    """Student's t: a deviation that is estimated from three may be far too small."""
    pairs = np.stack([drawn(4000, seed) for seed in range(5)], axis=1)
    found = [
        compare(measured(a), measured(b), deviation_of([rest])).verdict == "better"
        for a, b, *rest in pairs.tolist()
    ]
    assert 0.03 < np.mean(found) < 0.065


@pytest.mark.parametrize(("ahead", "power"), [(2, 0.41), (4, 0.88), (6, 0.995)])
def test_progress_passes(ahead: float, power: float) -> None:
    """By `ahead` deviations of a training: P(Z > 1.645 - ahead / sqrt 2)."""
    found = passes(drawn(2000, 1, better=ahead * BOTH), drawn(2000, 2), given(BOTH))
    assert found == pytest.approx(power, abs=0.03)


def champions(scores: list[float], history: bool) -> tuple[int, int]:
    """How many champions there are, one training after the other: by the gate, and by the lower
    number."""
    champion, ours, lower = scores[0], 1, 1
    for place, score in enumerate(scores[1:], 1):
        known = deviation_of([scores[: place + 1]]) if history else None
        if compare(measured(score), measured(champion), known).verdict == "better":
            champion, ours = score, ours + 1
        lower += score < min(scores[:place])
    return ours, lower


@pytest.mark.parametrize("history", [True, False])
def test_twenty_equal_trainings_change_the_champion_at_most_once(history: bool) -> None:
    attempts = [champions(drawn(TRAININGS, seed).tolist(), history) for seed in range(500)]
    ours, lower = np.array(attempts).T
    harmonic = sum(1 / n for n in range(1, TRAININGS + 1))
    assert lower.mean() == pytest.approx(harmonic, abs=0.2) and harmonic > 3.59
    assert ours.mean() < 1.5 and (ours <= 2).mean() > 0.98


# ---- another configuration against the champion's equals ----------------------------------------


def test_one_score_is_compared_with_a_mean_by_students_t() -> None:
    """The interval in which a further score of a sample is expected, by SciPy's formulas."""
    scores = [50.0, 53.0, 47.0, 58.0, 44.0]
    known = deviation_of([scores])
    assert known is not None
    t = (np.mean(scores) - 40) / (np.std(scores, ddof=1) * math.sqrt(1 + 1 / 5))
    found = compare_with_mean(measured(40.0), scores, known)
    assert found.sure == pytest.approx(stats.t.cdf(t, 4)) and found.verdict == "tie"
    assert found.more == "no number of images would decide, 2 trainings of each would"
    assert compare_with_mean(measured(35.0), scores, known).verdict == "better"
    assert compare_with_mean(measured(65.0), scores, known).verdict == "worse"


def test_samples_count_also_where_seeds_are_said_not_to() -> None:
    """`registry.seed_deviation: 0`: the errors of a score and of a mean of two are left."""
    found = compare_with_mean(measured(48.0), [50.0, 50.0], given(0.0))
    assert found.sure == pytest.approx(stats.norm.cdf(2 / math.sqrt(1.5)))


def against_equals(ahead: float, attempts: int = 2000) -> tuple[float, float]:
    """How often a version of another configuration passes that is better by `ahead` deviations of a
    training: against the mean of twenty equals and the luckiest of them, and against that alone."""
    both = pair = 0
    for attempt in range(attempts):
        scores = drawn(TRAININGS, attempt)
        known = deviation_of([scores.tolist()])
        assert known is not None
        new = measured(float(drawn(1, 10**6 + attempt, better=ahead * BOTH)[0]))
        luckiest = measured(float(scores.min()))
        of_mean = compare_with_mean(new, scores.tolist(), known).verdict == "better"
        both += of_mean and beyond_samples(new, luckiest)
        pair += compare(new, luckiest, known).verdict == "better"
    return both / attempts, pair / attempts


@pytest.mark.parametrize(
    ("ahead", "passing", "against_luckiest"), [(0, 0.01, 0.0), (3, 0.65, 0.17), (5, 0.98, 0.72)]
)
def test_progress_passes_however_lucky_the_champion_was(
    ahead: float, passing: float, against_luckiest: float
) -> None:
    """Against the luckiest alone, a new configuration must be better by six deviations."""
    found = against_equals(ahead)
    assert found == pytest.approx((passing, against_luckiest), abs=0.04)


def test_what_would_decide_a_tie() -> None:
    near = compare(measured(49.0), measured(50.0), given(BOTH))
    assert near.verdict == "tie" and 0.5 < near.sure < 0.65
    # (1.645 sqrt(2) BOTH)^2 = 54.1
    assert near.more == "no number of images would decide, 55 trainings of each would"
    # the difference is told apart where 1.645 sqrt(2 N / n) is 1: at n = 5.41 N
    images = compare(measured(49.0), measured(50.0), given(0.0))
    assert images.more == "8,900 more images of each would decide"
    assert "too near" in compare(measured(50.0), measured(50.001), given(BOTH)).more
    far = compare(measured(60.0), measured(50.0), given(BOTH))
    assert far.verdict == "worse" and far.sure < 0.05 and far.more == ""


def test_samples_that_two_versions_share_count_for_less() -> None:
    """A version that goes on from the champion makes nearly the same images of the same latents."""
    noise = np.random.default_rng(0)
    shared, own = noise.standard_normal(40), 0.2 * noise.standard_normal(40)
    a, b = tuple(shared.tolist()), tuple((shared + own).tolist())
    assert correlation(a, b) > 0.95
    assert correlation(a, ()) == correlation(a, (1.0,) * 40) == correlation((), ()) == 0
    together = compare(measured(48.5, 1, a), measured(50, 1, b), continued=True)
    apart = compare(measured(48.5), measured(50), continued=True)
    assert (together.verdict, apart.verdict) == ("better", "tie")


def test_the_deviation_is_pooled_within_configurations() -> None:
    assert deviation_of([[50.0, 54.0]]) is None and deviation_of([[1.0], [9.0], [5.0]]) is None
    found = deviation_of([[50.0, 54.0], [10.0, 14.0], [99.0]])
    assert found == Deviation(math.sqrt(8), 2, "known from 4 trainings")


def test_seeds_are_assumed_to_move_a_score_by_a_share_of_it() -> None:
    """Two seeds of `demo` (docs/scores.md): by their samples alone, one would be far better."""
    one, other = measured(46.8, 0.5), measured(53.1, 0.5)
    found = compare(one, other)
    assert found.verdict == "tie" and found.deviation.origin == "assumed, 8% of the score"
    assert found.deviation.value == pytest.approx(math.hypot(0.5, 0.08 * 53.1))
    assert compare(one, other, continued=True).verdict == "better"
    assert compare(measured(40, 0.5), other).verdict == "better"
    # where samples move it farther, they count
    assert compare(measured(46.8, 5), measured(53.1, 5)).deviation.origin.endswith("the error")


def test_scores_without_any_error() -> None:
    assert compare(measured(1, 0), measured(2, 0), continued=True) == Comparison(
        "better", 1.0, Deviation(0.0, math.inf, "assumed, 3 times the error")
    )


# ---- means over trainings ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([50.0, 53.0, 47.0], [60.0, 58.0, 65.0], "better"),
        ([60.0, 58.0, 65.0], [50.0, 53.0, 47.0], "worse"),
        ([50.0, 53.0, 47.0], [52.0, 58.0], "tie"),
        ([50.0, 52.0], [57.0, 53.0], "tie"),
        ([50.0, 53.0, 47.0], [70.0], "better"),
    ],
)
def test_means_are_compared_by_students_t(a: list[float], b: list[float], verdict: str) -> None:
    found = compare_means(a, b)
    assert found is not None and found.verdict == verdict
    expected = stats.ttest_ind(b, a, equal_var=True, alternative="greater")
    assert found.sure == pytest.approx(1 - expected.pvalue, abs=1e-9)
    assert found.deviation.freedom == len(a) + len(b) - 2
    assert bool(found.more) == (verdict == "tie")


def test_two_seeds_each_tell_little() -> None:
    """By hand: the pooled deviation is 2, so that of the difference is 2, and Student's t of two
    degrees of freedom is 2.92 at 95%."""
    b = [50 - math.sqrt(2), 50 + math.sqrt(2)]
    for ahead, verdict in ((5.8, "tie"), (5.9, "better")):
        found = compare_means([score - ahead for score in b], b)
        assert found is not None and found.verdict == verdict
    assert found.deviation.value == pytest.approx(2.0)
    found = compare_means([score - 5.8 for score in b], b)
    assert found is not None and found.more == "3 trainings of each would decide"
    near = compare_means([score - 0.01 for score in b], b)
    assert near is not None and "too near for any number of trainings" in near.more


@pytest.mark.parametrize(("a", "b"), [([50.0], [60.0]), ([50.0, 51.0], [60.0]), ([], [60.0])])
def test_fewer_than_three_that_share_a_recipe_tell_nothing(a: list[float], b: list[float]) -> None:
    assert compare_means(a, b) is None


def test_equal_trainings_of_each_are_told_apart_once_in_twenty() -> None:
    a, b = (np.reshape(drawn(12_000, seed), (4000, 3)).tolist() for seed in (1, 2))
    found = [compare_means(one, other) for one, other in zip(a, b, strict=True)]
    share = np.mean([one is not None and one.verdict == "better" for one in found])
    assert share == pytest.approx(0.05, abs=0.012)


def test_the_error_of_a_mean_is_the_deviation_by_the_root_of_the_number() -> None:
    scores = [53.1, 46.8, 50.6, 49.4, 45.1, 54.1]
    assert error_of_mean(scores) == pytest.approx(stats.sem(scores))
    assert error_of_mean([53.1, 46.8]) == pytest.approx((53.1 - 46.8) / 2)
    assert error_of_mean([53.1]) is None


def test_percents_are_never_certain() -> None:
    shown = [percent(share) for share in (0.0, 0.002, 0.74, 0.9999, 1.0)]
    assert shown == ["0.1%", "0.2%", "74%", "99.9%", "99.9%"]
