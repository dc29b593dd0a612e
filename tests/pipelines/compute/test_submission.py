"""What is sent to a cluster for a run, and what is refused before anything is sent."""

from __future__ import annotations

import os
import subprocess
import zipfile
from argparse import Namespace
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from gan_train import recipes
from gan_train.errors import UserError
from pipelines.cli.main import main
from pipelines.cli.remote import address_of, arguments_of_run, exit_status
from pipelines.compute import submission
from pipelines.compute.submission import Job, package
from pipelines.registry.provenance import source_tags
from tests.training import tiny_config

ROOT = Path(__file__).parents[3]
TAGS = {"gan_train.version": "0.1.0", "mlflow.source.git.commit": "c0ffee"}


def test_the_package_holds_configuration_code_and_local_files(
    tiny_source: Path, tmp_path: Path
) -> None:
    (tiny_source / ".gitignore").write_text("*.png")  # it does not thin out what is sent
    pictures = tmp_path / "pictures.zip"
    with zipfile.ZipFile(pictures, "w") as archive:
        archive.writestr("a.txt", "a")
    config = tiny_config(
        tiny_source, Path("/shared/runs"), evaluate__pictures=str(pictures), cluster__workers=2
    )
    sent = package(config, TAGS)
    sent.write(tmp_path / "job.zip")
    with zipfile.ZipFile(tmp_path / "job.zip") as archive:
        archive.extractall(tmp_path / "there")
    there = tmp_path / "there"

    code = {
        path.relative_to(ROOT).as_posix()
        for room in ("gan_train", "pipelines", "configs", "sample_data/statistics")
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = {path.relative_to(there).as_posix() for path in there.rglob("*") if path.is_file()}
    assert code < names
    images = {f"sent/0/{p.relative_to(tiny_source).as_posix()}" for p in tiny_source.rglob("*.png")}
    assert len(images) == 24
    assert names - code == images | {"sent/1/pictures.zip", "recipe.yaml", "source.json"}

    read = recipes.load(str(there / "recipe.yaml"))
    assert (read.data.source, read.evaluate.pictures) == ("sent/0", "sent/1/pictures.zip")
    assert (read.cluster.address, read.cluster.jobs) == ("auto", None)
    assert read.workspace == Path("/shared/runs")
    assert source_tags(there / "gan_train") == TAGS


def test_without_code_or_without_files(tiny_source: Path) -> None:
    config = tiny_config(tiny_source, Path("/shared/runs"))
    bare = package(config, TAGS, code=False, upload=False)
    assert bare.files.keys() == {"recipe.yaml"}
    assert bare.config.data.source == str(tiny_source)


def test_in_an_image_the_entrypoint_brings_the_recipe(tiny_source: Path, tmp_path: Path) -> None:
    from ray.runtime_env import RuntimeEnv

    config = tiny_config(tiny_source, Path("/shared/runs"), evaluate__pictures="/it's/a b.zip")
    sent = package(config, TAGS, image="registry.example/gan-train:1")
    assert sent.files.keys() == {"recipe.yaml"}, "Ray takes no working directory beside an image"
    there = submission.runtime_environment(sent, tmp_path)
    assert there.keys() == {"image_uri", "env_vars"} and not list(tmp_path.glob("*.zip"))
    assert there["image_uri"] == "registry.example/gan-train:1"
    RuntimeEnv(**there)  # Ray's own check of what may stand beside it

    # what the shell makes of it
    python = tmp_path / "the python"
    python.write_text('#!/bin/sh\necho "$1 $2 $3 $5 $6"\ncat "$4"\n', encoding="utf-8")
    python.chmod(0o755)
    command = submission.entrypoint(sent, str(python), ["--resume", "tiny 1"])
    shown = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    words, _, recipe = shown.stdout.partition("\n")
    assert words == "-m pipelines.cli.main run --resume tiny 1"
    assert recipe == recipes.dump(sent.config)

    ids = {sent.id(), replace(sent, image="other").id(), replace(sent, image=None).id()}
    assert len(ids) == 3


def test_the_job_fits_its_schedule_and_keeps_the_lengths_that_were_chosen() -> None:
    settings = ["train.checkpoint_kimg=3", "family.lr = 0.1", "train.start_from=x", "seed=2"]
    given = Namespace(minutes=2.5, resume=None, overrides=settings)
    config = tiny_config(Path("source"), Path("runs"), train__start_from="x")
    kept = ["--set", settings[0], "--set", settings[1]]
    assert arguments_of_run(given, config) == ["--minutes", "2.5", *kept]
    given = Namespace(minutes=None, resume="tiny-1", overrides=settings)
    assert arguments_of_run(given, config) == ["--resume", "tiny-1", *kept]
    given = Namespace(minutes=None, resume=None, overrides=settings)
    assert arguments_of_run(given, config) == []


def test_equal_packages_have_equal_ids_and_bytes(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, Path("/shared/runs"))
    one, two = package(config, TAGS), package(config, TAGS)
    first = one.id()
    assert first == two.id() and first.startswith("tiny-")
    one.write(tmp_path / "one.zip")
    os.utime(next(tiny_source.rglob("*.png")), (0, 0))  # a time is no content
    two.write(tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()

    others = [
        one.id("--resume", "tiny-1"),
        package(recipes.change(config, {"seed": 1}), TAGS).id(),
        replace(one, files={**one.files, "gan_train/rng.py": b"other code"}).id(),
    ]
    next(tiny_source.rglob("*.png")).write_bytes(b"another picture")
    others.append(package(config, TAGS).id())
    assert len({first, *others}) == 5


def test_paths_are_here_or_on_the_cluster(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, Path("/shared/runs"))
    there = recipes.change(config, {"data.source": "/only/on/the/cluster"})
    assert package(there, TAGS).config.data.source == "/only/on/the/cluster"
    with pytest.raises(UserError, match=r"data\.source=nowhere: there is no .*/nowhere; a place"):
        package(recipes.change(config, {"data.source": "nowhere"}), TAGS)
    with pytest.raises(UserError, match=r"workspace=runs: a job needs a folder .* every node"):
        package(recipes.change(config, {"workspace": "runs"}), TAGS)


def test_more_than_the_limit_is_refused_with_the_remedy(tiny_source: Path) -> None:
    config = tiny_config(tiny_source, Path("/shared/runs"))
    with (tiny_source / "red" / "large.png").open("wb") as file:
        file.truncate(submission.LIMIT)  # takes no room on the disk
    with pytest.raises(UserError) as refused:
        package(config, TAGS)
    text = str(refused.value)
    assert "more than 99 MiB" in text
    assert "--set data.source=/shared/source --no-upload" in text
    assert package(config, TAGS, upload=False).config.data.source == str(tiny_source)


def test_nothing_of_the_environment_is_sent(
    tiny_source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "open-sesame")
    package(tiny_config(tiny_source, Path("/shared/runs")), TAGS).write(tmp_path / "job.zip")
    with zipfile.ZipFile(tmp_path / "job.zip") as archive:
        assert not any(b"open-sesame" in archive.read(name) for name in archive.namelist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set=train.batch=7", "--set=cluster.workers=2"], "train.batch"),
        (["--set=nmae=x"], "did you mean name?"),
        (["--set=data.classes=none"], "family.conditional"),
        (["--minutes=9", "--resume=x"], "a run that goes on keeps its schedule"),
    ],
)
def test_mistakes_are_told_before_a_cluster_is_asked(
    arguments: list[str],
    message: str,
    tiny_source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(recipes.dump(tiny_config(tiny_source, tmp_path / "workspace")))
    nobody = ["--address", "http://127.0.0.1:1"]
    assert main(["submit", str(recipe), *nobody, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "workspace").exists()


def test_the_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert address_of(None, tmp_path) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # the cluster, not its dashboard
    assert address_of(None, tmp_path) == "http://127.0.0.1:8265"
    monkeypatch.setenv("RAY_ADDRESS", "http://head:1")
    assert address_of(None, tmp_path) == "http://head:1"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "https://head:2")
    assert address_of(None, tmp_path) == "https://head:2"
    assert address_of("http://head:3", tmp_path) == "http://head:3"
    with pytest.raises(UserError, match="--address head:8265: allowed"):
        address_of("head:8265", tmp_path)


def test_the_exit_status_of_a_job() -> None:
    job = Job("a", "run", "tiny", "SUCCEEDED", "", datetime.now(), 1.0, 0)
    assert exit_status(job) == 0
    assert exit_status(replace(job, status="FAILED", exit_code=2)) == 2
    assert exit_status(replace(job, status="FAILED", exit_code=None)) == 1
    assert exit_status(replace(job, status="STOPPED", exit_code=None)) == 130
