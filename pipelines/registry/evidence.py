"""How sure it is that one version is better than another. Pure functions.

Two sources of chance lie between two scores. Another sample of a generator's images moves its
score by the standard error that every score carries. Another training, which differs in its seed
alone, moves it farther: by three times as much in "The FID Lottery" (arXiv 2606.20536), which is
of long trainings, and by more where they are short. So the difference of two scores is compared
with the deviation that two equally good trainings would show. That deviation is taken from the
registry's own history of equal configurations where it tells enough, or is given
(`registry.seed_deviation`), or else assumed, by a ratio and by a share of the score.

A champion has often had luck, for it was the best of its equals. A version of another configuration
is therefore compared with the mean of the champion's equals, which luck does not move.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

ENOUGH = 0.95
"""A version is better, or worse, where that is at least so probable."""
ASSUMED_RATIO = 3.0
"""How many times as far another seed moves a score as another sample, where nothing is known."""
ASSUMED_SHARE = 0.08
"""But at least by such a share of the score, of a training that begins with random networks: what
this project's own recipes show (docs/scores.md)."""
FEWEST = 3
"""So many trainings of one configuration tell their deviation."""
_FEWEST_BLOCKS = 20
_MOST_TRAININGS = 1000

Verdict = Literal["better", "tie", "worse"]


@dataclass(frozen=True)
class Measured:
    """A score: its value (lower is better), its standard error over samples, the number of images,
    and the influences of blocks of them (`gan_train/metrics/scores.py`, `Estimate`)."""

    value: float
    error: float
    images: int
    blocks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Deviation:
    """The standard deviation of the scores of trainings that differ in their seed alone, samples
    included; its degrees of freedom, which are infinite where it was not estimated; and in words
    where it comes from."""

    value: float
    freedom: float
    origin: str


@dataclass(frozen=True)
class Comparison:
    """Whether the first of two scores is better; the probability of that; and what more would
    decide a tie, in words."""

    verdict: Verdict
    sure: float
    deviation: Deviation
    more: str = ""


def deviation_of(groups: Iterable[Sequence[float]]) -> Deviation | None:
    """The deviation within groups of scores, pooled: each group is of one configuration. None where
    fewer than `FEWEST` trainings tell of it."""
    several = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in several)
    if freedom < FEWEST - 1:
        return None
    squares = 0.0
    for group in several:
        mean = sum(group) / len(group)
        squares += sum((score - mean) ** 2 for score in group)
    count = sum(map(len, several))
    return Deviation(math.sqrt(squares / freedom), freedom, f"known from {count} trainings")


def given(value: float) -> Deviation:
    """A deviation that a person has set."""
    return Deviation(value, math.inf, "as given")


def compare(
    a: Measured, b: Measured, known: Deviation | None = None, continued: bool = False
) -> Comparison:
    """Whether a is better than b, both scored on the same places of a sequence.

    The difference of two equally good trainings has twice the variance of one. Of the samples'
    errors, what both share does not count, and the rest counts in any case. Where no deviation is
    known, seeds are assumed to move the difference `ASSUMED_RATIO` times as far as samples, and a
    score by `ASSUMED_SHARE` of b's value, but not where a is `continued`: the training went on from
    networks that another had trained, so that chance had less to do. The probability is Student's
    with the deviation's degrees of freedom.
    """
    own = a.error**2 + b.error**2
    samples = max(0.0, own - 2 * correlation(a.blocks, b.blocks) * a.error * b.error)
    if known is None:
        seeds, origin = ASSUMED_RATIO**2 * samples, f"assumed, {ASSUMED_RATIO:g} times the error"
        share = 2 * (ASSUMED_SHARE * b.value) ** 2
        if share > seeds and not continued:
            seeds, origin = share, f"assumed, {ASSUMED_SHARE:.0%} of the score"
        deviation = Deviation(math.sqrt((samples + seeds) / 2), math.inf, origin)
    else:
        deviation, seeds = known, max(0.0, 2 * known.value**2 - own)
    scale = math.sqrt(samples + seeds)
    ahead = b.value - a.value
    verdict, sure = _judged(ahead, scale, deviation.freedom)
    if verdict != "tie":
        return Comparison(verdict, sure, deviation)
    needed = abs(ahead) / _quantile(deviation.freedom)
    return Comparison("tie", sure, deviation, _more(needed, samples, seeds, a.images))


def compare_with_mean(a: Measured, scores: Sequence[float], known: Deviation) -> Comparison:
    """Whether a is better than a training of another configuration is on average, of which `scores`
    are those of several, which differ in their seed alone.

    This is Student's t-test of one new score against the mean of m: the difference has the variance
    of a training times 1 + 1/m. The samples' errors are within the deviation between trainings,
    which is not taken to be less than they are.
    """
    variance = max(known.value, a.error) ** 2 * (1 + 1 / len(scores))
    ahead = sum(scores) / len(scores) - a.value
    verdict, sure = _judged(ahead, math.sqrt(variance), known.freedom)
    if verdict != "tie":
        return Comparison(verdict, sure, known)
    samples = min(a.error**2, variance)
    needed = abs(ahead) / _quantile(known.freedom)
    return Comparison("tie", sure, known, _more(needed, samples, variance - samples, a.images))


def beyond_samples(a: Measured, b: Measured) -> bool:
    """Whether a is better than b as they are, by more than other samples of both would change."""
    return compare(a, b, given(0.0)).verdict == "better"


def compare_means(a: Sequence[float], b: Sequence[float]) -> Comparison | None:
    """Whether the mean of a is better (lower) than that of b: scores of trainings that differ
    within a, and within b, in their seed alone. None where too few tell their deviation.

    This is Student's t-test: the deviation within a and within b is taken to be the same, and
    pooled. What more would decide a tie is told for two recipes whose means and deviation stay.
    """
    known = deviation_of((a, b))
    if known is None:
        return None
    ahead = sum(b) / len(b) - sum(a) / len(a)
    scale = known.value * math.sqrt(1 / len(a) + 1 / len(b))
    verdict, sure = _judged(ahead, scale, known.freedom)
    more = "" if verdict != "tie" else _more_trainings(abs(ahead), known.value)
    return Comparison(verdict, sure, known, more)


def error_of_mean(scores: Sequence[float]) -> float | None:
    """The standard error of the mean of scores of trainings that differ in their seed alone: their
    own standard deviation by the root of their number. None of less than two."""
    if len(scores) < 2:
        return None
    return float(np.std(scores, ddof=1)) / math.sqrt(len(scores))


def percent(share: float) -> str:
    """A probability in percent, never 100% of what is not certain."""
    value = 100 * share
    return f"{value:.0f}%" if 1 <= value <= 99 else f"{min(99.9, max(0.1, value)):.1f}%"


def _judged(ahead: float, scale: float, freedom: float) -> tuple[Verdict, float]:
    """Whether a difference is more than chance makes, and the probability that its sign is right.
    `scale` is the deviation of the difference that chance alone makes."""
    if scale == 0.0:
        sure = 0.5 if ahead == 0 else float(ahead > 0)
    else:
        sure = _below(ahead / scale, freedom)
    if sure >= ENOUGH:
        return "better", sure
    return ("worse" if sure <= 1 - ENOUGH else "tie"), sure


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """How much of two scores' error their samples share, from -1 to 1: the correlation of the
    influences of blocks at the same places. 0 where these are not known, or too few to tell."""
    if len(a) != len(b) or len(a) < _FEWEST_BLOCKS or len(set(a)) == 1 or len(set(b)) == 1:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _more(needed: float, samples: float, seeds: float, images: int) -> str:
    """What would decide a tie. `needed` is the deviation of the difference at which it would be
    decided, `samples` and `seeds` are the variances that it has from each."""
    if needed**2 > seeds:
        more = images * (samples / (needed**2 - seeds) - 1)
        return f"{_rounded(more):,} more images of each would decide"
    trainings = math.ceil((samples + seeds) / needed**2) if needed > 0 else math.inf
    if trainings > _MOST_TRAININGS:
        return "they are too near for any number of images to decide"
    return f"no number of images would decide, {trainings} trainings of each would"


def _more_trainings(ahead: float, deviation: float) -> str:
    """How many trainings of each of two recipes would decide a tie of their means."""
    for count in range(2, _MOST_TRAININGS + 1):
        if ahead >= _quantile(2 * (count - 1)) * deviation * math.sqrt(2 / count):
            return f"{count} trainings of each would decide"
    return "they are too near for any number of trainings to decide"


def _rounded(count: float) -> int:
    """The number, rounded up to two digits."""
    unit = 10 ** max(0, math.floor(math.log10(max(count, 1))) - 1)
    return math.ceil(count / unit) * unit


def _below(t: float, freedom: float) -> float:
    """The probability that Student's t is below `t`."""
    from scipy.special import stdtr  # half a second, which no training has to spare

    return float(stdtr(min(freedom, 1e9), t))


def _quantile(freedom: float) -> float:
    """Student's t at which one is sure enough."""
    from scipy.special import stdtrit

    return float(stdtrit(min(freedom, 1e9), ENOUGH))
