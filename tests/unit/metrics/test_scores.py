"""The stored flat form of scores is read into records: values, references, directions."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from gan_train.metrics.scores import (
    Estimate,
    Measure,
    Reference,
    flat,
    headline,
    measure,
    number,
    references,
    scores_of,
    split,
    towards,
    with_error,
)

HOW = {"data": "ab" * 32, "images": 2000}


@pytest.mark.parametrize(
    ("name", "score", "reference"),
    [
        ("fd_x", "fd_x", None),
        ("fd_x_null", "fd_x", "null"),
        ("fd_x_to_B_null", "fd_x_to_B", "null"),
        ("fd_x_null_to_B", "fd_x_to_B", "null"),
        ("class_accuracy_real", "class_accuracy", "real"),
        ("truth_error_to_A_identity", "truth_error_to_A", "identity"),
        ("psnr_y_bicubic", "psnr_y", "bicubic"),
        ("psnr_y_bicubic_Set5", "psnr_y_Set5", "bicubic"),
        ("ppl_w_end_x", "ppl_w_end_x", None),
        # names of sets that look like endings
        ("psnr_y_real", "psnr_y_real", None),
        ("psnr_y_bicubic_real", "psnr_y_real", "bicubic"),
        ("fd_nullity", "fd_nullity", None),
        ("something_real", "something", "real"),
        # errors
        ("fd_x_se", "fd_x", "se"),
        ("fd_x_se_to_B", "fd_x_to_B", "se"),
        ("psnr_y_se_Set5", "psnr_y_Set5", "se"),
        ("fd_sensible", "fd_sensible", None),
    ],
)
def test_a_stored_name_is_a_score_or_its_reference(
    name: str, score: str, reference: Reference | Literal["se"] | None
) -> None:
    assert split(name) == (score, reference)


def test_an_error_belongs_to_its_score() -> None:
    stored = flat({"fd_x": Estimate(54.41, 0.62), "class_entropy": Estimate(0.9)})
    assert stored == {"fd_x": 54.41, "fd_x_se": 0.62, "class_entropy": 0.9}
    found = scores_of(stored, HOW)
    assert list(found) == ["fd_x", "class_entropy"]
    assert (found["fd_x"].error, found["class_entropy"].error) == (0.62, None)
    assert (found["fd_x"].text, found["class_entropy"].text) == ("54.4 ± 0.6", "0.9")
    assert towards("fd_x_se", "B") == "fd_x_to_B_se"
    assert scores_of({"fd_x_se": 1.0}, HOW) == {}


def test_scores_of_a_generator() -> None:
    stored = {
        "fd_x": 40.0,
        "fd_x_null": 5.4,
        "precision_x": 0.6,
        "precision_x_null": 0.8,
        "pair_distance": 10.0,
        "pair_distance_real": 12.9,
        "class_entropy": 0.95,
        "ppl_w_end_x": 120.0,
    }
    found = scores_of(stored, HOW)
    assert list(found) == [
        *("fd_x", "precision_x", "pair_distance", "class_entropy", "ppl_w_end_x"),
    ]
    distance = found["fd_x"]
    assert (distance.name, distance.value, distance.protocol) == ("fd_x", 40.0, HOW)
    assert (distance.reference_kind, distance.reference) == ("null", 5.4)
    assert (found["pair_distance"].reference_kind, found["pair_distance"].reference) == (
        "real",
        12.9,
    )
    assert (found["ppl_w_end_x"].reference_kind, found["ppl_w_end_x"].reference) == (None, None)
    assert [score.better for score in found.values()] == [
        *("lower", "higher", None, "higher", "lower"),
    ]
    assert headline(found) == distance


def test_scores_of_a_translation_have_two_references() -> None:
    stored = {
        "fd_x": 70.0,
        "fd_x_to_A": 60.0,
        "fd_x_to_A_null": 5.0,
        "fd_x_to_B": 80.0,
        "fd_x_to_B_null": 6.0,
        "cycle_error_A": 0.1,
        "truth_error_to_B": 0.2,
        "fd_x_to_B_identity": 140.0,
        "truth_error_to_B_identity": 0.3,
    }
    found = scores_of(stored, HOW)
    assert list(found) == ["fd_x", "fd_x_to_A", "fd_x_to_B", "cycle_error_A", "truth_error_to_B"]
    there = found["fd_x_to_B"]
    assert there.references == {"null": 6.0, "identity": 140.0}
    # a method without a network says more than the null value
    assert (there.reference_kind, there.reference) == ("identity", 140.0)
    assert there.reference_word == "identity"
    assert found["fd_x_to_A"].reference_word == "real"
    assert headline(found) == found["fd_x"]
    assert references(found.values()) == {
        "real images": {"fd_x_to_A": 5.0, "fd_x_to_B": 6.0},
        "unchanged": {"fd_x_to_B": 140.0, "truth_error_to_B": 0.3},
    }


def test_scores_of_upscaling_by_sets() -> None:
    stored = {
        "perceptual_x": 0.2,
        "psnr_y": 27.0,
        "perceptual_x_bicubic": 0.4,
        "psnr_y_bicubic": 25.0,
        "perceptual_x_Set5": 0.1,
        "psnr_y_Set5": 30.0,
        "perceptual_x_bicubic_Set5": 0.3,
        "psnr_y_bicubic_Set5": 28.0,
    }
    found = scores_of(stored, HOW)
    assert list(found) == ["perceptual_x", "psnr_y", "perceptual_x_Set5", "psnr_y_Set5"]
    assert {name: score.reference for name, score in found.items()} == {
        "perceptual_x": 0.4,
        "psnr_y": 25.0,
        "perceptual_x_Set5": 0.3,
        "psnr_y_Set5": 28.0,
    }
    assert {score.reference_kind for score in found.values()} == {"bicubic"}
    assert headline(found) == found["perceptual_x"]


def test_a_reference_without_its_score_is_left_out() -> None:
    assert scores_of({"fd_x_null": 5.0}, HOW) == {}


@pytest.mark.parametrize(
    ("names", "decides"),
    [
        (("kid", "fid", "fd_efficientnet_lite0"), "fid"),
        (("precision", "fd_x_null", "fd_x"), "fd_x"),
        (("fid_null", "kid"), None),
        ((), None),
        (("fd_x_to_A", "fd_x", "fd_x_to_B", "fd_x_null"), "fd_x"),
        (("fid_to_A", "fid", "fd_x"), "fid"),
        (("perceptual_x_bicubic", "psnr_y", "perceptual_x", "perceptual_x_Set5"), "perceptual_x"),
        (("psnr_y", "perceptual_bicubic"), None),
        (("ppl_w_end_x", "fd_x"), "fd_x"),
        (("fidelity", "fds"), None),
    ],
)
def test_what_decides(names: tuple[str, ...], decides: str | None) -> None:
    found = headline(scores_of(dict.fromkeys(names, 1.0), HOW))
    assert (found and found.name) == decides


@pytest.mark.parametrize(
    ("name", "label", "better"),
    [
        ("fid", "FID", "lower"),
        ("fd_efficientnet_lite0", "Fréchet distance", "lower"),
        ("fd_efficientnet_lite0_to_B", "Fréchet distance to B", "lower"),
        ("kid_within_class_efficientnet_lite0", "Kernel distance within class", "lower"),
        ("precision_inception_v3_2015_12_05", "Precision", "higher"),
        ("ppl_z_end_efficientnet_lite0", "Path length z end", "lower"),
        ("pair_distance_within_class", "Pair distance in class", None),
        ("psnr_y_Set5", "PSNR Set5", "higher"),
        ("cycle_error_A", "Cycle error A", "lower"),
        ("something_new", "something new", None),
    ],
)
def test_labels_and_directions(name: str, label: str, better: str | None) -> None:
    found = measure(name)
    assert (found.name, found.label, found.better) == (name, label, better)
    assert bool(found.meaning) == (name != "something_new")


def test_the_better_way() -> None:
    psnr, distance, neither = measure("psnr_y"), measure("fid"), measure("pair_distance")
    values = [{"psnr_y": 20.0, "fid": 20.0, "pair_distance": 1.0}, {"psnr_y": 30.0, "fid": 30.0}]
    assert (psnr.best([*values, {}]), distance.best(values)) == (30.0, 20.0)
    assert neither.best([*values, {"pair_distance": 2.0}]) is None
    assert distance.best([{"fid": 20.0}, {"fid": 20.0}, {"fid": math.nan}]) is None
    assert psnr.at_least_as_good(30.0, 25.0) and not psnr.at_least_as_good(20.0, 25.0)
    assert distance.at_least_as_good(20.0, 20.0) and not distance.at_least_as_good(21.0, 20.0)
    assert not psnr.at_least_as_good(math.nan, 25.0)
    assert psnr.cost(math.inf) == math.inf
    assert Measure("x", "x", "", None).cost(2.0) == 2.0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (49.105, "49.1"),
        (0.057291, "0.0573"),
        (-0.00065336, "-0.0007"),
        (-3.675e-05, "0"),
        (0.0, "0"),
        (12345.6, "12,346"),
        (math.nan, "no number"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (54.41, 0.62, "54.4 ± 0.6"),
        (54.41, 0.142, "54.41 ± 0.14"),  # one digit of it would be off by a half
        (54.41, 0.096, "54.4 ± 0.1"),
        (-3.675e-05, 0.00021, "0.0000 ± 0.0002"),
        (0.0512, 0.0031, "0.051 ± 0.003"),
        (12345.6, 312.0, "12,300 ± 300"),
        (54.41, None, "54.4"),
        (54.41, 0.0, "54.4"),
        (54.41, math.nan, "54.4"),
        (math.nan, 1.0, "no number"),
    ],
)
def test_a_value_ends_where_its_error_begins(value: float, error: float | None, text: str) -> None:
    assert with_error(value, error) == text
