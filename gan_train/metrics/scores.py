"""Scores: a value, its error and references, how it was measured, and which way is better.

A reference is a value that a score is compared with; the error is its standard error over samples.
Scores are stored in a flat form, as values by name (`scores.json`, the event log, MLflow), in which
error and references have names of their own: `fd_x_se`, `fd_x_null`, `fd_x_to_B_identity`,
`psnr_y_bicubic_Set5`. Only this file knows these endings; other modules write the flat form by
`flat` and read it through `scores_of`. `evaluator.py`, `path_length.py` and the tasks list
the names. An unknown name is a score of which neither lower nor higher is better, and is shown as
it is written. Pure functions, no tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from gan_train.metrics.protocol import Protocol

Better = Literal["lower", "higher"]
Reference = Literal["bicubic", "identity", "null", "real"]
"""What a score is compared with: the same measure of bicubic upsampling, of unchanged images
(`identity`), of one part of the real images against another (`null`), or of real images (`real`).
"""

OF_REAL_IMAGES: tuple[Reference, ...] = ("null", "real")
_ERROR = "se"
_BASELINES: tuple[Reference, ...] = ("bicubic", "identity")
_REFERENCES = (*_BASELINES, *OF_REAL_IMAGES)
"""All references. Where a score has several, the first of this order is its main one."""

REFERENCE_LABELS: dict[Reference, str] = {
    "null": "real images",
    "real": "real images",
    "bicubic": "bicubic",
    "identity": "unchanged",
}
"""The name of each reference in tables."""


@dataclass(frozen=True)
class Measure:
    """What is known of a score by its name: its name in tables, a sentence that explains it, and
    whether lower or higher is better; None where neither is."""

    name: str
    label: str
    meaning: str
    better: Better | None

    def cost(self, value: float) -> float:
        """A number that is lower for a better value: the value or its negative. It is infinite if
        the value is no finite number."""
        if not math.isfinite(value):
            return math.inf
        return -value if self.better == "higher" else value

    def at_least_as_good(self, value: float, target: float) -> bool:
        """Whether `value` is a finite number and not worse than `target`."""
        return math.isfinite(value) and self.cost(value) <= self.cost(target)

    def best(self, scores: Iterable[Mapping[str, float]]) -> float | None:
        """The best value of this measure among several flat forms. None where neither lower nor
        higher is better, or where there are not two different values."""
        values = {s[self.name] for s in scores if math.isfinite(s.get(self.name, math.nan))}
        return min(values, key=self.cost) if self.better and len(values) > 1 else None


BLOCKS = 40
"""Into how many blocks of neighbours the images of a sample are cut, to compare two samples."""


@dataclass(frozen=True)
class Estimate:
    """What a measure found on a sample: the value, its standard error over samples (not a number
    where it is not known), and the mean influence on the value of each of `BLOCKS` blocks of the
    images; empty where that is not known. `estimates.py` makes them."""

    value: float
    error: float = math.nan
    blocks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Score:
    """One measured value. `protocol` says how it was measured: two scores may be compared only
    when their protocols agree (`protocol.comparable`)."""

    name: str
    value: float
    protocol: Protocol
    references: Mapping[Reference, float] = field(default_factory=dict)
    """The references that were measured. There may be several: a translation has two."""
    error: float | None = None
    """The standard error over samples: how far another sample of as many images would typically
    move the value. None where it was not measured."""

    @property
    def text(self) -> str:
        """The value with its error, such as `54.4 ± 0.6`."""
        return with_error(self.value, self.error)

    @property
    def reference_kind(self) -> Reference | None:
        """The main reference: a method without a network (bicubic, identity) where one was
        measured, else real images; None where there is no reference."""
        return next((kind for kind in _REFERENCES if kind in self.references), None)

    @property
    def reference(self) -> float | None:
        """The value of the main reference; None where there is none."""
        kind = self.reference_kind
        return None if kind is None else self.references[kind]

    @property
    def reference_word(self) -> str:
        """A word for the main reference in a line of text: `bicubic`, `identity` or `real`."""
        kind = self.reference_kind
        return kind if kind in _BASELINES and kind is not None else "real"

    @property
    def measure(self) -> Measure:
        """What is known of the score by its name."""
        return measure(self.name)

    @property
    def better(self) -> Better | None:
        """Whether lower or higher is better; None where neither is."""
        return self.measure.better


@dataclass(frozen=True)
class _Kind:
    """What is known of all measures whose names are `start`, or begin with it and an underscore.
    `beside` lists the references that they can have."""

    start: str
    label: str
    meaning: str
    better: Better | None
    beside: tuple[Reference, ...] = ("identity", "null", "real")


_PAIRED: tuple[Reference, ...] = ("bicubic",)
_KNOWN = (
    _Kind("fid", "FID", "How far Inception features lie from those of real images.", "lower"),
    _Kind("fd", "Fréchet distance", "How far features lie from those of real images.", "lower"),
    _Kind(
        "sliced_wasserstein",
        "Sliced Wasserstein",
        "How far features lie from those of real images, along single directions.",
        "lower",
    ),
    _Kind("kid", "Kernel distance", "A distance of features that N does not bias.", "lower"),
    _Kind("precision", "Precision", "The share of samples that lie among real images.", "higher"),
    _Kind("recall", "Recall", "The share of real images that lie among samples.", "higher"),
    _Kind("density", "Density", "How many real images a sample lies near to.", "higher"),
    _Kind("coverage", "Coverage", "The share of real images that have a sample near.", "higher"),
    _Kind(
        "memorised_p",
        "Memorisation, p-value",
        "How likely a generator that copies nothing comes as near to training images; low values "
        "show copies.",
        None,
    ),
    _Kind(
        "memorised",
        "Memorisation",
        "The chance that a sample is nearer to a training image than another real image is; values "
        "above .5 show copies.",
        None,
    ),
    _Kind(
        "gan_train_accuracy",
        "GAN-train",
        "How well a classifier that has seen nothing but samples knows real images.",
        "higher",
    ),
    _Kind("ppl", "Path length", "How much images change on a way between latents.", "lower"),
    _Kind("class_accuracy", "Class accuracy", "The share seen as the class asked for.", "higher"),
    _Kind("class_entropy", "Class entropy", "1 means that classes are equally frequent.", "higher"),
    _Kind(
        "pair_distance_within_class",
        "Pair distance in class",
        "The distance of two samples of one class, with pixels from 0 to 1; low values show "
        "collapse.",
        None,
    ),
    _Kind(
        "pair_distance",
        "Pair distance",
        "The distance of two samples, with pixels from 0 to 1; low values show collapse.",
        None,
    ),
    _Kind(
        "nearest_distance",
        "Nearest distance",
        "The distance to the nearest other sample; low values show copies.",
        None,
    ),
    _Kind(
        "perceptual",
        "Perceptual distance",
        "How different the image looks from the true one.",
        "lower",
        _PAIRED,
    ),
    _Kind("psnr", "PSNR", "Peak signal to noise against the true image, in dB.", "higher", _PAIRED),
    _Kind("ssim", "SSIM", "Structural similarity to the true image, at most 1.", "higher", _PAIRED),
    _Kind("cycle_error", "Cycle error", "What translation there and back changes.", "lower"),
    _Kind("truth_error", "Error", "The difference of pixels to the true partner.", "lower"),
    _Kind(
        "truth_distance",
        "Perceptual distance",
        "How different the image looks from its true partner.",
        "lower",
    ),
)
_DECIDES = ("fid", "fd", "perceptual")
_TOLD_ELSEWHERE = re.compile(r"_?(efficientnet_lite0|inception_v3_2015_12_05)|^_y(?=_|$)")
"""Parts of names that tables leave out: the protocol has the network, and luma (`y`) is usual."""


def _begins(name: str, start: str) -> bool:
    return name == start or name.startswith(f"{start}_")


def _kind(name: str) -> _Kind | None:
    return next((kind for kind in _KNOWN if _begins(name, kind.start)), None)


def measure(name: str) -> Measure:
    """What is known of a score by its name. The label keeps the direction of a translation, the
    space of a path, or the set of pictures: `psnr_y_Set5` becomes "PSNR Set5"."""
    kind = _kind(name)
    if kind is None:
        return Measure(name, name.replace("_", " "), "", None)
    rest = _TOLD_ELSEWHERE.sub("", name.removeprefix(kind.start)).replace("_", " ")
    return Measure(name, kind.label + rest, kind.meaning, kind.better)


def split(name: str) -> tuple[str, Reference | Literal["se"] | None]:
    """Split a stored name into the name of its score and what it is of that score: the reference
    whose value it is, `se` for the error, None for the score's own value. The ending may stand
    before a direction or a set, as in `psnr_y_bicubic_Set5`.

    Only references that the measure can have count: a set of test pictures may be called `real`.
    """
    kind = _kind(name)
    endings = (*(_REFERENCES if kind is None else kind.beside), _ERROR)
    found = re.search(rf"_({'|'.join(endings)})(?=_|$)", name)
    if found is None:
        return name, None
    ending = next(ending for ending in endings if ending == found[1])
    return name[: found.start()] + name[found.end() :], cast("Reference | Literal['se']", ending)


def reference_name(name: str, reference: Reference) -> str:
    """The name under which a score's reference is stored."""
    return f"{name}_{reference}"


def error_name(name: str) -> str:
    """The name under which a score's standard error is stored."""
    return f"{name}_{_ERROR}"


def flat(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """The flat form of estimates by name. An error that is not known is left out."""
    found: dict[str, float] = {}
    for name, estimate in estimates.items():
        found[name] = estimate.value
        if math.isfinite(estimate.error):
            found[error_name(name)] = estimate.error
    return found


def towards(name: str, domain: str) -> str:
    """A stored name with the direction of a translation: `fd_x_null` becomes `fd_x_to_B_null`."""
    base, ending = split(name)
    score = f"{base}_to_{domain}"
    return score if ending is None else f"{score}_{ending}"


def scores_of(values: Mapping[str, float], protocol: Protocol) -> dict[str, Score]:
    """The scores of a flat form, by name and in the same order. An error or a reference whose score
    is absent is left out."""
    beside: dict[str, dict[Reference, float]] = {}
    errors: dict[str, float] = {}
    for name, value in values.items():
        base, ending = split(name)
        if ending == _ERROR:
            errors[base] = value
        elif ending is not None:
            beside.setdefault(base, {})[cast("Reference", ending)] = value
    return {
        name: Score(name, value, protocol, beside.get(name, {}), errors.get(name))
        for name, value in values.items()
        if split(name)[1] is None
    }


def headline(scores: Mapping[str, Score]) -> Score | None:
    """The score that decides which checkpoint is best: `fid` where there is one, else the Fréchet
    distance `fd_...` of another extractor, else the perceptual distance to true images; None when
    there is none. Where several names begin alike, the shortest counts, which is the mean over
    directions or sets. All of these are better when they are lower."""
    for start in _DECIDES:
        if found := [name for name in scores if _begins(name, start)]:
            return scores[min(found, key=lambda name: (len(name), name))]
    return None


def degenerate(values: Mapping[str, float]) -> str | None:
    """Why a flat form is that of no usable generator; None if it may be one. The deciding score is
    no finite number, or all samples are alike and the real images are not."""
    scores = scores_of(values, {})
    decides = headline(scores)
    if decides is not None and not math.isfinite(decides.value):
        return f"{decides.name} is {decides.value}"
    for name, score in scores.items():
        kind = _kind(name)
        between_any_two = kind is not None and kind.start == "pair_distance"
        if between_any_two and score.value == 0 and score.references.get("real") != 0:
            return f"all samples are alike ({name} is 0)"
    return None


def references(scores: Iterable[Score]) -> dict[str, dict[str, float]]:
    """The rows that a table shows below its scores: for each label of `REFERENCE_LABELS` that
    occurs, the references by the name of their score."""
    found: dict[str, dict[str, float]] = {}
    known = list(scores)
    for kind, label in REFERENCE_LABELS.items():
        for score in known:
            if kind in score.references:
                found.setdefault(label, {})[score.name] = score.references[kind]
    return found


def number(value: float) -> str:
    """Three significant digits, at most four decimals, and an exponent from ten millions on."""
    if not math.isfinite(value):
        return "no number"
    if abs(value) < 0.001:
        return f"{round(value, 4) + 0.0:g}" if round(value, 4) else "0"
    if abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.2e}"


def with_error(value: float, error: float | None) -> str:
    """A value with its standard error, such as `54.4 ± 0.6`: the error has one digit, or two where
    the first is 1, and the value ends at the same place. Without an error, three digits."""
    if error is None or not math.isfinite(value) or not math.isfinite(error) or error <= 0:
        return number(value)
    digits = 2 if f"{error:e}"[0] == "1" else 1
    place = digits - 1 - math.floor(math.log10(float(f"{error:.{digits - 1}e}")))
    shown = (f"{round(x, place) + 0.0:,.{max(place, 0)}f}" for x in (value, error))
    return " ± ".join(shown)
