"""docs/faults.md has a row for each test that injects a fault."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def marks() -> Iterator[tuple[str, str, Path]]:
    """What is injected and promised by every mark `pytest.mark.fault` in the tests."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                injected, promised = map(ast.literal_eval, node.args)
                yield injected, promised, path


def test_each_fault_is_in_the_documents_table() -> None:
    rows = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    lacking = [
        f"{path.relative_to(ROOT)}: {injected}"
        for injected, promised, path in marks()
        if f"| {injected} | {promised} |" not in rows
    ]
    assert not lacking, "docs/faults.md lacks these; `make faults` writes them to build/faults.md"


def test_no_fault_stands_there_twice() -> None:
    injected = [one for one, _, _ in marks()]
    assert len(injected) == len(set(injected))
