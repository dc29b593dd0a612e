"""What the names of scores mean to people: labels, which way is better, whose reference they are.

`gan_train/metrics/evaluator.py` lists the names. One that is not known here is shown as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

REFERENCES: dict[str, tuple[str, ...]] = {
    "real images": ("_null", "_real"),
    "bicubic": ("_bicubic",),
    "unchanged": ("_identity",),
}
"""What stands beside scores, and the endings of its names."""

Better = Literal["lower", "higher"]


@dataclass(frozen=True)
class Measure:
    """A score: how it is called, what it says in a sentence, and which way is better, if any."""

    name: str
    label: str
    meaning: str
    better: Better | None

    def cost(self, value: float) -> float:
        """Lower is better; what is no number is worst."""
        if not math.isfinite(value):
            return math.inf
        return -value if self.better == "higher" else value

    def at_least_as_good(self, value: float, target: float) -> bool:
        """Whether `value` is a number and not worse than `target`."""
        return math.isfinite(value) and self.cost(value) <= self.cost(target)

    def best(self, scores: Iterable[Mapping[str, float]]) -> float | None:
        """The best value among several scores; None where no way is better, or all are equal."""
        values = {s[self.name] for s in scores if math.isfinite(s.get(self.name, math.nan))}
        return min(values, key=self.cost) if self.better and len(values) > 1 else None


_KNOWN: tuple[tuple[str, str, str, Better | None], ...] = (
    ("fid", "FID", "Fréchet distance of Inception features to those of real images.", "lower"),
    ("fd", "Fréchet distance", "Of features to those of real images.", "lower"),
    ("kid", "Kernel distance", "Of features; not biased by the number of images.", "lower"),
    ("precision", "Precision", "Share of samples that lie among real images.", "higher"),
    ("recall", "Recall", "Share of real images that lie among samples.", "higher"),
    ("ppl", "Path length", "How much pictures change along a way between latents.", "lower"),
    ("class_accuracy", "Class accuracy", "Share of samples seen as the class asked for.", "higher"),
    ("class_entropy", "Class entropy", "1: all classes equally often; low: collapse.", "higher"),
    ("pair_distance_within_class", "Pair distance in class", "Low: collapse within classes.", None),
    ("pair_distance", "Pair distance", "Between two samples, in pixels; low: collapse.", None),
    ("nearest_distance", "Nearest distance", "To the nearest other sample; low: copies.", None),
    ("perceptual", "Perceptual distance", "To the true picture.", "lower"),
    ("psnr", "PSNR", "Peak signal to noise, in dB, against the true picture.", "higher"),
    ("ssim", "SSIM", "Structural similarity to the true picture, at most 1.", "higher"),
    ("cycle_error", "Cycle error", "Of pictures translated there and back.", "lower"),
    ("truth_error", "Error", "Of pixels, against the true partner.", "lower"),
    ("truth_distance", "Perceptual distance", "To the true partner.", "lower"),
)
_MAIN = ("fid", "fd", "perceptual", "psnr")
_TOLD_ELSEWHERE = re.compile(r"_?(efficientnet_lite0|inception_v3_2015_12_05)|^_y(?=_|$)")
"""Parts of names that stand in the protocol, or go without saying."""
_ENDING = re.compile(r"(_null|_real|_bicubic|_identity)(?=_|$)")


def measure(name: str) -> Measure:
    """What is known of a score's name; what it says of direction, space or set stays visible."""
    for start, label, meaning, better in _KNOWN:
        if name == start or name.startswith(f"{start}_"):
            rest = _TOLD_ELSEWHERE.sub("", name.removeprefix(start)).replace("_", " ")
            return Measure(name, label + rest, meaning, better)
    return Measure(name, name.replace("_", " "), "", None)


def split(name: str) -> tuple[str, str]:
    """A score's name without the part that makes it a reference's (`_null`), and that part."""
    found = _ENDING.search(name)
    return (name, "") if found is None else (_ENDING.sub("", name, count=1), found[1])


def references(scores: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """By label of `REFERENCES`, what it gets: values by the name of the score they stand beside."""
    found: dict[str, dict[str, float]] = {}
    for label, endings in REFERENCES.items():
        for name, value in scores.items():
            base, ending = split(name)
            if ending in endings:
                found.setdefault(label, {})[base] = value
    return found


def main_measure(scores: Mapping[str, float]) -> Measure | None:
    """The one that decides, of all pictures together; None where there is none of its kind."""
    names = sorted((name for name in scores if split(name)[1] == ""), key=len)
    for start in _MAIN:
        for name in names:
            if name == start or name.startswith(f"{start}_"):
                return measure(name)
    return None
