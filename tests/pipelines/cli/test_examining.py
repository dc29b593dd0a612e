"""`gan-train evaluate --nearest`, as it is typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli.main import main
from tests.pipelines.cli.test_sampling import untrained
from tests.training import tiny_config, tiny_images

SETTINGS = ("evaluate.images=12", "evaluate.metrics=[memorisation]", "cluster.gpu=no")


def test_the_nearest_pairs_of_a_checkpoint_become_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_images(tmp_path / "images")
    folder = untrained(tiny_config(source, tmp_path), tmp_path / "train" / "tiny-1")
    page, before = tmp_path / "pairs.html", sorted(folder.iterdir())
    options = [option for setting in SETTINGS for option in ("--set", setting)]
    assert main(["evaluate", str(folder), "--nearest", str(page), *options]) == 0
    assert "memorisation 0 (.5 is fair), p = 1" in capsys.readouterr().out  # noise copies nothing
    written = page.read_text(encoding="utf-8")
    assert written.count("<figure>") == 12 and "tiny, 000000001000" in written
    assert sorted(folder.iterdir()) == before

    pixels = [*options, "--set", "evaluate.metrics=[diversity]"]
    assert main(["evaluate", str(folder), "--nearest", str(page), *pixels]) != 0
    assert "compared by features" in capsys.readouterr().err
