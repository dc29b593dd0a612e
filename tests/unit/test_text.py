"""Untrusted names as text."""

from __future__ import annotations

import logging
import re

import pytest

from gan_train.errors import UserError
from gan_train.text import VisibleFormatter, code, line, markdown, visible

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "](javascript:alert(1))",
    "a|b",
    "`a``b`",
    "**a** __b__ ~~c~~",
    "https://evil.example www.evil.example",
    "\x1b]0;owned\x07\x1b[2J\x9b31m",
    "\u202egnp.exe\u2066",
    "two\nlines\r\n# head",
    "&lt;script&gt;",
    "\udcff",
)
"""Names that classes and files may have."""


def test_terminals_obey_no_name() -> None:
    assert visible("a\x1b[2J\x9b\u202eb\udcff\n\tc") == r"a\x1b[2J\x9b\u202eb\udcff" + "\n\tc"
    assert line("a\n\tb\r\x07") == r"a b \x07"
    assert visible("Ægir Ωμέγα हिन्दी 👩\u200d🎨") == "Ægir Ωμέγα हिन्दी 👩\u200d🎨"
    record = logging.LogRecord("x", logging.INFO, "", 0, "class %s", ("\x1b[31m",), None)
    assert VisibleFormatter("%(message)s").format(record) == r"class \x1b[31m"


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_holds_no_markup(name: str) -> None:
    shown = markdown(name)
    assert not re.search(r"[<>`*~|\[\]\\@\n\r\x1b\u202e]|&(?!#\d+;)|://|www\.|(?<!\w)_", shown)
    assert all(c.isprintable() for c in shown)
    for limit in range(1, 40):
        cut = markdown(name, limit)
        assert len(cut) <= limit and not re.search(r"&(?!#\d+;)", cut), "no escape is cut"


def test_names_stay_readable() -> None:
    assert markdown("fd_efficientnet_lite0 (real), no. 1: it's 50%") == (
        "fd_efficientnet_lite0 (real), no. 1: it's 50%"
    )
    assert code("a_b") == "`a_b`" and code("a``b") == "``` a``b ```"


def test_no_password_is_told() -> None:
    error = UserError("MLflow at postgresql://gan:s3cret@db:5432/mlflow does not answer")
    assert str(error) == "MLflow at postgresql://gan:***@db:5432/mlflow does not answer"
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", ("s3://key:s3cret@b/c",), None)
    assert VisibleFormatter("%(message)s").format(record) == "s3://key:***@b/c"
