"""What Prefect's pages show of scores."""

from __future__ import annotations

import pytest

from pipelines.flows import artifacts


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("fd_efficientnet_lite0", 52.4631, "52.5"),
        ("kid_efficientnet_lite0", -3.675e-05, "0"),
        ("kimg", 71.008, 71.008),
        ("resolution", 32.0, 32.0),
        ("checkpoint", "000000071008", "000000071008"),
    ],
)
def test_scores_have_three_digits(name: str, value: object, shown: object) -> None:
    assert artifacts._cell(name, value) == shown


def test_a_score_stands_with_its_error() -> None:
    row = {
        "kimg": 71.008,
        "fd_x": 54.41,
        "fd_x_se": 0.62,
        "fd_x_null": 5.434,
        "class_entropy": 0.9314,
        "checkpoint": "000000071008",
    }
    assert artifacts._cells(row) == {
        "kimg": 71.008,
        "fd_x": "54.4 ± 0.6",
        "fd_x_null": "5.43",
        "class_entropy": "0.931",
        "checkpoint": "000000071008",
    }
