"""`gan-train recipes`, `runs` and `versions` on recipes, run folders and a real MLflow database."""

from __future__ import annotations

from pathlib import Path

import pytest

from gan_train import recipes
from gan_train.runs import run_folder
from pipelines.cli.main import main
from pipelines.registry import versions
from pipelines.registry.tracking import connect
from tests.pipelines import registry_runs


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_recipes_are_listed_with_what_they_say_of_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    for path in recipes.SHIPPED.glob("*.yaml"):
        assert [path.stem] == [line[0] for line in words(shown) if line[:1] == [path.stem]]
    assert "progan, 32 px, grey" in shown
    assert "on the glyphs that ship with the project" in " ".join(shown.split())

    # a recipe of one's own in ./configs comes before that of the project
    (tmp_path / "configs").mkdir()
    own = recipes.dump(recipes.load("demo", ["data.resolution=64"]))
    (tmp_path / "configs" / "demo.yaml").write_text(f"# The demo, larger.\n{own}")
    assert main(["recipes", "progan"]) == 0
    shown = capsys.readouterr().out
    assert "progan, 64 px, grey\n    The demo, larger.\n" in shown
    assert "stylegan" not in shown
    assert main(["recipes", "biggan"]) == 2
    assert "there are cgan, cyclegan" in capsys.readouterr().err


def test_every_recipe_says_what_it_is() -> None:
    for path in recipes.known():
        assert len(recipes.about(path)) > 60, path


def started(workspace: Path, name: str, image: int = 1000) -> registry_runs.Run:
    """A run folder that has reached a number of images."""
    config = registry_runs.config(workspace)
    run = registry_runs.Run(config, registry_runs.index(), f"train/{name}")
    (run.folder / run_folder.CONFIG).write_text(recipes.dump(config))
    run.metrics(image)
    return run


def test_runs_are_listed_with_their_state_and_best_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished, stopped, died, now = (
        started(tmp_path, f"tiny-2026010{day}-000000") for day in range(1, 5)
    )
    finished.checkpoint(1000, 31.5)
    finished.checkpoint(2000, 42.0)
    finished.end(2000)
    stopped.end(1000, "stopped")
    died.end(1000, "stopped")
    died.metrics(3000)
    with run_folder.exclusive(now.folder):
        assert main(["runs", "--workspace", str(tmp_path)]) == 0
    shown = {line[0]: line[1:] for line in words(capsys.readouterr().out)[1:]}
    assert shown == {
        finished.folder.name: ["progan", "finished", "2", "31.5", "1", registry_runs.METRIC],
        stopped.folder.name: ["progan", "stopped", "1", "-", "-", "-"],
        died.folder.name: ["progan", "interrupted", "3", "-", "-", "-"],
        now.folder.name: ["progan", "training", "1", "-", "-", "-"],
    }
    assert main(["runs", "tiny", "--workspace", str(tmp_path)]) == 0
    assert len(words(capsys.readouterr().out)) == 5
    assert main(["runs", "other", "--workspace", str(tmp_path)]) == 2
    assert f"no run of other in {tmp_path}" in capsys.readouterr().err


def test_a_run_that_cannot_be_read_hides_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = started(tmp_path, "tiny-20260101-000000"), started(tmp_path, "tiny-20260102-000000")
    (old.folder / run_folder.CONFIG).write_text("name: tiny\nno_longer: a key\n")
    assert main(["runs", "--workspace", str(tmp_path)]) == 0
    said = capsys.readouterr()
    assert [line[0] for line in words(said.out)[1:]] == [new.folder.name]
    assert f"{old.folder.name} is left out" in said.err and "no_longer" in said.err


def test_to_look_at_a_lock_changes_no_file(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    assert not run_folder.is_trained_now(run_dir)
    assert not list(run_dir.iterdir())
    with run_folder.exclusive(run_dir):
        holder = (run_dir / ".lock").read_text()
        assert holder and run_folder.is_trained_now(run_dir)
        assert (run_dir / ".lock").read_text() == holder
    assert not run_folder.is_trained_now(run_dir)


def test_versions_are_listed_with_alias_score_and_run(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = workspace / "tiny.yaml"
    recipe.write_text(recipes.dump(registry_runs.config(workspace)))
    assert main(["versions", str(recipe)]) == 2
    assert "has no version yet" in capsys.readouterr().err
    for name, score in (("tiny-20260101-000000", 31.5), ("tiny-20260102-000000", 40.0)):
        run = started(workspace, name)
        run.checkpoint(2000, score)
        run.end(2000)
        versions.register_best(run.config, run.folder, run.index, {})
    assert main(["versions", str(recipe)]) == 0
    shown = [line[:8] for line in words(capsys.readouterr().out)[1:]]
    measure = registry_runs.METRIC
    assert shown == [
        ["2", "challenger", "40", "6.01", "(2)", measure, "2", "tiny-20260102-000000"],
        ["1", "champion", "31.5", "6.01", "(2)", measure, "2", "tiny-20260101-000000"],
    ]
    # who was champion, from when to when, and why
    versions.promote(registry_runs.config(workspace), 2)
    assert main(["versions", str(recipe), "--champions"]) == 0
    now, before = words(capsys.readouterr().out)[1:]
    assert (
        now[0] == "2"
        and now[3] == "now"
        and now[4:] == ["promoted", "by", "hand", "over", "version", "1"]
    )
    assert before[0] == "1" and before[3:5] == now[1:3]
    assert " ".join(before[5:]) == f"first scored version, {measure} 31.5"
    about = connect(registry_runs.config(workspace)).get_registered_model("progan-tiny").description
    assert about.startswith("Generators of the recipe") and "promoted by hand" in about


def test_what_only_reads_makes_no_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["versions", "demo"]) == 2
    capsys.readouterr()
    assert main(["generate", "demo", "--seeds", "1", "--out", "a.png"]) == 2
    assert "nothing is registered" in capsys.readouterr().err
    assert main(["serve", "demo", "--port", "0"]) == 2
    assert not (tmp_path / "runs" / "mlflow.db").exists()
