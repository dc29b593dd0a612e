"""Signs of disease in a training, from what its event log holds anyway. Pure functions.

A sign is a rule over curves (ticks) or scores (checkpoints) with few thresholds, each with its
reason. A rule that needs a value which a family does not log finds nothing. `docs/doctor.md` has
the table of what was found in trainings that were ill on purpose, and in healthy ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from gan_train.diagnosis.record import Record, Tick, Visit, better, fall_at_most, lately, record_of
from gan_train.metrics.scores import number

GAP = 1
"""So many ticks may lack a sign of many ticks: curves of short ticks scatter."""
WINS_TICKS = 4
WINS_LOSS = 0.02
"""D's loss, of the logistic or least squares kind, is below this: it is right about nearly every
image, with a certainty of 99 percent, and G's gradient says little (Goodfellow et al. 2014, arXiv
1406.2661, section 3; Arjovsky and Bottou 2017, arXiv 1701.04862, section 2). Undecided, it has
1.39 or 0.5. The lowest tick of healthy ones had 0.03."""
ADA_BOUND = 0.8
"""Karras et al. 2020 (arXiv 2006.06676), section 2.2: beyond this strength, augmentations leak
into the generated images."""
ADA_TICKS = 2
RUNAWAY_TICKS = 2
RUNAWAY_RATIO = 30.0
"""A gradient norm is this many times its median of the run so far. Healthy ones reached 8 times."""
RUNAWAY_SIZE = 1e4
"""Losses and norms that are larger than this belong to no training that was healthy."""
RUNAWAY_LOGIT = 100.0
"""Logits are beyond this: the probability that they stand for differs from 0 or 1 by 1e-44. It does
not count for critics of Wasserstein's kind, whose outputs have no such meaning."""
RUNAWAY_AFTER = 6
"""So many ticks make a median."""
COLLAPSE_SHARE = 0.25
"""The distance of two samples, as a share of that of two real images. Healthy generators end at
0.85 and more; on their way, perceptrons stay at 0.35 for a while."""
LOST_SHARE, LOST_RATIO = 0.5, 0.5
"""Or variety was lost: the share is below the one, and has fallen to the other of what it was."""
COLLAPSE_ENTROPY = 0.5
"""The entropy of predicted classes, as a share of that of real images. Healthy generators have 0.9
and more, collapsed ones below 0.4."""
CLASS_SKILL = 0.25
"""The share of the way from guessing classes to real images."""
RISING = 1.3
"""What has grown by more than this factor since it was lowest is on the mend, as in the first
images of any training, where it doubles from checkpoint to checkpoint."""
RISING_BY = 0.05
"""And by more than this: a share of few images is known no better."""
LASTING_VISITS = 2
"""A sign in scores counts once so many checkpoints in a row have it: one may be chance."""
SETTLED_VISITS = 4
"""Classes count in images that are worth it: each image of the data set was shown, and after that
the newest of so many checkpoints was no better than the first of them. While a generator learns to
draw, few classes are recognised in what it draws."""
OVERFIT_SURE = 0.8
"""The mean sign of D's logits of real images. Karras et al. 2020, section 3: 0.6 is their target,
and it goes to 1 as D learns its images by heart."""
OVERFIT_TICKS = 4
OVERFIT_EPOCHS = 100
"""Each image was shown so many times. Before that, D may be as sure because G is new."""
OVERFIT_WORSE = 1.15
"""The deciding score is this many times its best, beside being worse by more than the interval."""
PROGRESS_VISITS = 4
"""So many checkpoints without progress are needed to say that there is none."""
PROGRESS_SHARE = 0.2
"""And none of them may be better than the first by this share of its score, as far as their
intervals tell. Scores of few images would not show a fall of a fifth, and then say nothing."""


@dataclass(frozen=True)
class Kind:
    """A disease and what usually helps. A `broken` state is never registered; `train.on_sickness`
    acts on what is `acute`; what is `advice` is no disease."""

    remedy: str
    broken: bool = False
    acute: bool = False
    advice: bool = False


NOT_FINITE = "not finite"
COLLAPSE = "mode collapse"
CLASSES = "classes ignored"
RUNAWAY = "norms run away"
OVERFIT = "overfitting"
WINS = "discriminator wins"
ADA = "augmentation at its bound"
NO_PROGRESS = "no progress"
PLATEAU = "plateau"
KINDS: dict[str, Kind] = {
    NOT_FINITE: Kind(
        "lower the learning rate or raise the gradient penalty, and resume from the last "
        "checkpoint",
        broken=True,
        acute=True,
    ),
    COLLAPSE: Kind(
        "go back to a checkpoint before it; lower the learning rate of G, enlarge the batch, or "
        "take a family with minibatch standard deviation or R1",
        broken=True,
        acute=True,
    ),
    CLASSES: Kind(
        "look whether the labels are right (data.classes); give classes more room in D, or train "
        "longer with a lower learning rate",
        broken=True,
        acute=True,
    ),
    RUNAWAY: Kind(
        "lower the learning rate, or switch a gradient penalty on (R1, WGAN-GP with drift)",
        broken=True,
        acute=True,
    ),
    OVERFIT: Kind(
        "take the best checkpoint; more images, data.mirror=true or family.augment=ada help, or a "
        "smaller D"
    ),
    WINS: Kind(
        "lower the learning rate of D, raise the gradient penalty (R1), or switch augmentation on "
        "where images are few",
        acute=True,
    ),
    ADA: Kind(
        "collect more images, or add mirrored ones (data.mirror=true); below some thousand images "
        "start from trained networks (train.start_from)"
    ),
    NO_PROGRESS: Kind(
        "look at the samples: if they are bad, raise the learning rate and check the data; if they "
        "are good, training may end here"
    ),
    PLATEAU: Kind(
        "training may end here; train.patience_kimg would have ended it by itself", advice=True
    ),
}
"""All diseases, the worst first."""


@dataclass(frozen=True)
class Diagnosis:
    """What a run has: its name (a key of `KINDS`), since how many images, and the evidence."""

    name: str
    since: int
    evidence: str

    @property
    def kind(self) -> Kind:
        """What is known of the disease."""
        return KINDS[self.name]

    def sentence(self) -> str:
        """Name, time, evidence and remedy, in one line."""
        at = f"since {self.since / 1000:.4g} kimg"
        return f"{self.name} {at}: {self.evidence}; what usually helps: {self.kind.remedy}"


def diagnose(
    events: Iterable[Mapping[str, Any]], patience_kimg: float | None = None
) -> list[Diagnosis]:
    """What a run has at the end of these present events, the worst first; empty if it is healthy.

    `patience_kimg` is the length without progress after which there is a plateau; without it, that
    is half of the run so far.
    """
    record = record_of(events)
    rules: tuple[Callable[[Record], Diagnosis | None], ...] = (
        _not_finite,
        _collapse,
        _classes,
        _runaway,
        _overfit,
        _wins,
        _ada,
        _no_progress,
    )
    found = {one.name: one for rule in rules if (one := rule(record)) is not None}
    if OVERFIT in found:  # then D wins because it knows the images by heart
        found.pop(WINS, None)
    names = list(KINDS)
    if not _progressed(record):  # new networks lack variety and classes, too
        names.sort(key=(NO_PROGRESS, *names).index)
        if len(_scored(record)) < PROGRESS_VISITS:
            found.pop(COLLAPSE, None)
            found.pop(CLASSES, None)
    elif (one := _plateau(record, patience_kimg)) is not None:
        found[one.name] = one
    return [found[name] for name in names if name in found]


def broken(events: Iterable[Mapping[str, Any]], nimg: int) -> str | None:
    """Why the checkpoint at `nimg` images is that of a broken state, which is never registered;
    None if it is not. Only what had happened by then counts."""
    until = [event for event in events if event["nimg"] <= nimg]
    found = [one for one in diagnose(until) if one.kind.broken]
    return f"{found[0].name} ({found[0].evidence})" if found else None


# ---- curves ------------------------------------------------------------------------------------


def _not_finite(record: Record) -> Diagnosis | None:
    event = record.not_finite
    return None if event is None else Diagnosis(NOT_FINITE, event["nimg"], event["what"])


def _bounded_losses(values: Mapping[str, float]) -> dict[str, float]:
    """The losses of discriminators that are 0 when D is right about every image. A critic of
    Wasserstein's kind has none: it has a gradient penalty `gp`."""
    if "loss/gp" in values:
        return {}
    return {k: v for k, v in values.items() if k.startswith("loss/D")}


def _wins(record: Record) -> Diagnosis | None:
    names = _bounded_losses(record.ticks[-1].values) if record.ticks else {}
    for name in names:
        curve = [(tick.nimg, tick.values.get(name, math.inf)) for tick in record.ticks]
        won = lately(curve, lambda one: one[1] < WINS_LOSS, GAP)
        if len(won) >= WINS_TICKS:
            most = max(loss for _, loss in won)
            return Diagnosis(
                WINS,
                won[0][0],
                f"{name} was at most {number(most)} in {len(won)} ticks, so D is right about "
                "nearly every image",
            )
    return None


def _ada(record: Record) -> Diagnosis | None:
    high = lately(record.ticks, lambda t: t.values.get("augment_p", 0.0) >= ADA_BOUND)
    if len(high) < ADA_TICKS:
        return None
    p = high[-1].values["augment_p"]
    return Diagnosis(
        ADA,
        high[0].nimg,
        f"its strength is {number(p)}; from {ADA_BOUND} on it leaks into the images",
    )


def _sizes(tick: Tick) -> dict[str, float]:
    """The values of a tick that run away when training does."""
    kinds = ("gradient_norm/", "logit/", "loss/")
    return {k: abs(v) for k, v in tick.values.items() if k.startswith(kinds)}


def _runaway(record: Record) -> Diagnosis | None:
    if len(record.ticks) < RUNAWAY_TICKS:
        return None
    for name in _sizes(record.ticks[-1]):
        curve = [(tick, sizes[name]) for tick in record.ticks if name in (sizes := _sizes(tick))]
        logit = name.startswith("logit/") and "loss/gp" not in record.ticks[-1].values
        bound = RUNAWAY_LOGIT if logit else RUNAWAY_SIZE
        why = f"; more than {number(bound)} is no healthy size"
        if name.startswith("gradient_norm/") and len(curve) > RUNAWAY_AFTER:
            usual = median(size for _, size in curve[:-RUNAWAY_TICKS])
            if usual and RUNAWAY_RATIO * usual < bound:
                bound, why = RUNAWAY_RATIO * usual, f", and {number(usual)} in the run so far"
        away = lately([(*one, bound) for one in curve], lambda one: one[1] > one[2])
        if len(away) >= RUNAWAY_TICKS:
            return Diagnosis(RUNAWAY, away[0][0].nimg, f"{name} is {number(away[-1][1])}{why}")
    return None


# ---- scores ------------------------------------------------------------------------------------


def _share(name: str, visit: Visit) -> float | None:
    """A score as a share of that of real images; None where one of the two is missing or 0."""
    score = visit.scores.get(name)
    real = score.references.get("real") if score else None
    return score.value / real if score and real else None


def _lasting(
    visits: Sequence[Visit], value: Callable[[Visit], float | None], below: float
) -> Sequence[Visit]:
    """The last checkpoints, if they are enough, in which a value stays below a bound and does not
    rise."""
    low = lately(visits, lambda v: (x := value(v)) is not None and x < below)
    if len(low) < LASTING_VISITS:
        return ()
    values = [x for visit in low if (x := value(visit)) is not None]
    return () if values[-1] > RISING * max(min(values), 0.0) + RISING_BY else low


def _collapse(record: Record) -> Diagnosis | None:
    names = {name for visit in record.visits[-1:] for name in visit.scores}
    for name in sorted(name for name in names if name.startswith("pair_distance")):
        share = partial(_share, name)
        most = max((x for v in record.visits if (x := share(v)) is not None), default=0.0)
        low = _lasting(
            record.visits, share, max(COLLAPSE_SHARE, min(LOST_SHARE, LOST_RATIO * most))
        )
        if low:
            where = name.removeprefix("pair_distance_")
            of = " of one class" if where.startswith("within_class") else ""
            return Diagnosis(
                COLLAPSE,
                low[0].nimg,
                f"two samples{of} differ by {100 * (share(low[-1]) or 0.0):.0f}% of what two real "
                "images differ by",
            )
    entropy = partial(_share, "class_entropy")
    low = _lasting(record.visits, entropy, COLLAPSE_ENTROPY)
    if _settled(record, low):
        return Diagnosis(
            COLLAPSE,
            low[0].nimg,
            f"the entropy of the classes of samples is {100 * (entropy(low[-1]) or 0.0):.0f}% of "
            "that of real images, so some classes hardly occur",
        )
    return None


def _settled(record: Record, low: Sequence[Visit]) -> bool:
    """Whether the score stood still at some time in these checkpoints, which show a sign."""
    late = [visit for visit in low if visit.nimg >= record.images]
    return any(
        not better(new, old) for old, new in zip(late, late[SETTLED_VISITS - 1 :], strict=False)
    )


def _classes(record: Record) -> Diagnosis | None:
    chance = 1 / record.classes if record.classes else 0.0

    def skill(visit: Visit) -> float | None:
        score = visit.scores.get("class_accuracy")
        real = score.references.get("real", 1.0) if score else 0.0
        return (score.value - chance) / (real - chance) if score and real > chance else None

    low = _lasting(record.visits, skill, CLASS_SKILL)
    if not _settled(record, low):
        return None
    score = low[-1].scores["class_accuracy"]
    return Diagnosis(
        CLASSES,
        low[0].nimg,
        f"{100 * score.value:.0f}% of samples show the class asked for; guessing gives "
        f"{100 * chance:.0f}%, real images {100 * score.references.get('real', 1.0):.0f}%",
    )


def _overfit(record: Record) -> Diagnosis | None:
    """D is sure of its images and has seen them often, or is sure and the score gets worse."""
    sure = lately(record.ticks, lambda t: (_sureness(t) or 0.0) >= OVERFIT_SURE, GAP)
    if len(sure) < OVERFIT_TICKS:
        return None
    percent = f"{50 * (1 + (_sureness(sure[-1]) or 0.0)):.0f}%"
    often = [tick for tick in sure if tick.nimg >= OVERFIT_EPOCHS * (record.images or math.inf)]
    if len(often) >= OVERFIT_TICKS:
        return Diagnosis(
            OVERFIT,
            often[0].nimg,
            f"D is {percent} sure of real images, and each of the {record.images:,} was shown "
            f"{often[-1].nimg / record.images:.0f} times",
        )
    visits = _scored(record)
    if not visits:
        return None
    best = min(visits, key=lambda v: v.cost)
    since = [v for v in visits if v.nimg > best.nimg]
    worse = lately(since, lambda v: better(best, v) and v.cost > OVERFIT_WORSE * abs(best.cost))
    if len(worse) < LASTING_VISITS:
        return None
    assert best.decides is not None and worse[-1].decides is not None
    return Diagnosis(
        OVERFIT,
        worse[0].nimg,
        f"{best.decides.name} rose from {number(best.decides.value)} at {best.nimg / 1000:.4g} "
        f"kimg to {number(worse[-1].decides.value)}, while D is {percent} sure of real images",
    )


def _sureness(tick: Tick) -> float | None:
    """How sure D is of real images, from -1 to 1: the mean sign of its logits, or the like by its
    probabilities; None where neither is logged."""
    if "logit/real_sign" in tick.values:
        return tick.values["logit/real_sign"]
    if "probability/real" in tick.values:
        return 2 * tick.values["probability/real"] - 1
    return None


# ---- progress ----------------------------------------------------------------------------------


def _scored(record: Record) -> list[Visit]:
    """The checkpoints that have a deciding score, which is a number."""
    return [visit for visit in record.visits if math.isfinite(visit.cost)]


def _progressed(record: Record) -> bool:
    """Whether a later checkpoint was better than the first one; True where no score decides."""
    scored = _scored(record)
    return not scored or any(better(visit, scored[0]) for visit in scored[1:])


def _no_progress(record: Record) -> Diagnosis | None:
    scored = _scored(record)
    if len(scored) < PROGRESS_VISITS or _progressed(record):
        return None
    first, *later = scored
    if any(fall_at_most(visit, first) > PROGRESS_SHARE * abs(first.cost) for visit in later):
        return None
    return _standstill(NO_PROGRESS, first, scored)


def _plateau(record: Record, patience_kimg: float | None) -> Diagnosis | None:
    """Nothing has got better than the best checkpoint before a window as long as the patience."""
    scored = _scored(record)
    if not scored:
        return None
    now = scored[-1].nimg
    length = now / 2 if patience_kimg is None else 1000 * patience_kimg
    fewest = PROGRESS_VISITS if patience_kimg is None else 1
    before = [visit for visit in scored if visit.nimg <= now - length]
    window = [visit for visit in scored if visit.nimg > now - length]
    if not before or len(window) < fewest:
        return None
    best = min(before, key=lambda v: v.cost)
    if any(better(visit, best) for visit in window):
        return None
    return _standstill(PLATEAU, best, [best, *window])


def _standstill(name: str, reference: Visit, visits: Sequence[Visit]) -> Diagnosis:
    assert reference.decides is not None
    best = min(visits[1:], key=lambda v: v.cost)
    now = visits[-1].nimg
    return Diagnosis(
        name,
        reference.nimg,
        f"{reference.decides.name} was {number(reference.decides.value)} ± "
        f"{number(reference.se)} at {reference.nimg / 1000:.4g} kimg, and the best of the "
        f"{(now - reference.nimg) / 1000:.4g} kimg since is "
        f"{number(best.decides.value if best.decides else math.nan)}: no change beyond the "
        "interval",
    )
