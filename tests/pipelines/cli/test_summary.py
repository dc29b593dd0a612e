"""The last lines of a run, where no run has to be trained for them."""

from __future__ import annotations

from pathlib import Path

from gan_train import recipes
from pipelines.cli.summary import run_summary
from pipelines.registry.versions import Registration


def test_a_schedule_that_ends_below_32_pixels(tmp_path: Path) -> None:
    small = {"data.resolution": 8, "family.stable_kimg": {4: 1, 8: 2}, "workspace": str(tmp_path)}
    config = recipes.change(recipes.load("demo"), small)
    run_dir = tmp_path / "train" / "demo-1"
    run_dir.mkdir(parents=True)
    (run_dir / "events.jsonl").touch()
    registration = Registration(
        "progan-demo", 1, "champion", "the first", "fd", 40.0, {}, "40.0", "1", "a page"
    )
    said = run_summary(config, run_dir, registration)
    assert f"gan-train generate {run_dir} --version 1" in said
