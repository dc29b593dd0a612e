"""Runs in a bucket are verified, and versions trained again from it, on machines that know nothing
but the bucket. No engine is started."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gan_train import recipes
from gan_train.config import Config
from gan_train.files.store import Store
from gan_train.runs import run_folder, shared
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.trainer import train
from pipelines.cli.main import main
from pipelines.compute.sharding import StoredShards, plan_of
from pipelines.registry import versions
from tests.training import tiny_config

On = Callable[[str], None]
FORGED = "checkpoints/000000000128/networks.safetensors"


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> On:
    """Become the machine with that name, which has copies of its own."""
    return lambda machine: monkeypatch.setenv("GAN_TRAIN_CACHE", str(tmp_path / machine))


def trained(config: Config, bucket: str) -> Path:
    """A run with checkpoints at 64, 128 and 192 images, as rank 0 trains and sends it. Neither the
    images nor this machine's copies are left when it has ended."""
    config = recipes.change(config, {"workspace": bucket})
    plan = plan_of(config)
    stored = StoredShards.of(config, plan.directory)
    assert stored is not None
    index = stored.finish(plan, [stored.write(task) for task in plan.tasks()])
    run_dir = run_folder.new(config, plan.directory)
    with shared.Outbox(run_dir):
        train(config, index, plan.directory, PlainRuntime(run_dir))
    if config.registry.tracking_uri is not None:
        versions.register_best(config, run_dir, index, {})
    shutil.rmtree(config.workspace)
    shutil.rmtree(config.data.source)
    return run_dir


def settings(**more: Any) -> dict[str, Any]:
    given = {"total_kimg": 0.192, "checkpoint_kimg": 0.064, "threads": 1}
    return {f"train__{key}": value for key, value in given.items()} | more


@pytest.fixture
def store(on: On, in_bucket: str, tiny_source: Path, tmp_path: Path) -> Store:
    """The place in the bucket of a run that another machine has trained."""
    on("trains")
    config = tiny_config(tiny_source, tmp_path, **settings())
    return Store(in_bucket) / f"train/{trained(config, in_bucket).name}"


def test_a_run_is_verified_on_another_machine(
    on: On, in_bucket: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = store.url.rpartition("/")[2]
    before = {entry.key: entry.tag for entry in Store(in_bucket).entries()}

    def verified(*more: str, run: str = name, status: int = 0) -> list[list[str]]:
        """The rows of the command's answer, or the words of its error."""
        assert main(["verify", run, "--workspace", in_bucket, *more]) == status
        out, err = capsys.readouterr()
        return [line.split() for line in out.splitlines()[1:] or err.splitlines()]

    on("another")
    assert verified("--from", "0.07") == [
        ["0.064", "-", "0.128", "3", "same"],
        ["0.128", "-", "0.192", "3", "same"],
    ]
    assert {entry.key: entry.tag for entry in Store(in_bucket).entries()} == before
    left = {path.name for path in (tmp_path / "another").rglob("*") if path.is_file()}
    assert not left & {"networks.safetensors", "events.jsonl"}, "a copy of the run is left"

    # what was changed over there is found by a machine that has a sound copy of it, too
    on("follows")
    run_folder.find(recipes.load("demo", [f"workspace={in_bucket}"]), name)
    whole = store.read(FORGED)
    store.write(FORGED, bytes([*whole[:-2], whole[-2] ^ 1, whole[-1]]))
    ((place, _, *words),) = verified("--files", status=1)
    assert place == "0.128" and " ".join(words).startswith(f"{FORGED.rpartition('/')[0]}: networks")
    store.write(FORGED, whole)

    # what is not there is named by its address
    (words,) = verified("--files", run="nothing", status=2)
    assert f"in {in_bucket}/train; allowed: {name}" in " ".join(words)
    assert main(["verify", str(tmp_path / "nothing"), "--workspace", in_bucket]) == 2


def test_a_log_that_was_not_sent_to_its_end_is_no_fault(
    on: On, in_bucket: str, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """The machine that trained was lost between ledger and log. A gap before the end is a fault."""
    name = store.url.rpartition("/")[2]
    pieces = [entry.key for entry in store.entries("events")]
    lines = b"".join(store.read(key) for key in pieces).splitlines(keepends=True)
    for key in pieces[1:]:
        store.delete(key)
    on("another")
    cut = next(n for n, line in enumerate(lines) if json.loads(line)["nimg"] == 128)
    curves = [n for n, line in enumerate(lines[:cut]) if json.loads(line)["kind"] == "metrics"]
    without = lines[: curves[-1]] + lines[curves[-1] + 1 :]
    for kept, status, words in (
        (lines, 0, "the files are those that were written"),
        (lines[: cut + 1], 0, "the files are those that were written"),
        (without, 1, "0.064 - 0.096              -  the curves in the event log are gone"),
    ):
        store.write(pieces[0], b"".join(kept))
        assert main(["verify", name, "--workspace", in_bucket, "--files"]) == status
        assert words in capsys.readouterr().out


@pytest.mark.slow
def test_a_version_is_trained_again_from_the_bucket(
    on: On,
    in_bucket: str,
    tiny_source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # where MLflow keeps the files that belong to a database
    registry = f"sqlite:///{tmp_path}/mlflow.db"
    more = {"evaluate__metrics": ["frechet"], "registry__tracking_uri": registry}
    on("trains")
    trained(tiny_config(tiny_source, tmp_path / "w", **settings(**more)), in_bucket)
    before = {entry.key: entry.tag for entry in Store(in_bucket).entries()}

    def reproduced(workspace: str) -> tuple[int, str]:
        given = (f"workspace={workspace}", f"registry.tracking_uri={registry}")
        options = [word for one in given for word in ("--set", one)]
        status = main(["reproduce", "models:/progan-tiny/1", *options])
        return status, "".join(capsys.readouterr())

    # the data come from the bucket, also where another place is the workspace
    elsewhere = tmp_path / "elsewhere"
    for machine, place in (("second", in_bucket), ("third", str(elsewhere))):
        on(machine)
        status, said = reproduced(place)
        assert status == 0 and "weights     bit-identical to those registered" in said, said
        root = tmp_path / machine if place == in_bucket else elsewhere
        assert f"run         {root}/" in said
    assert {entry.key: entry.tag for entry in Store(in_bucket).entries()} == before

    for key in before:
        if key.startswith("shards/"):
            Store(in_bucket).delete(key)
    on("fourth")
    status, said = reproduced(in_bucket)
    assert status == 2 and f"neither in the workspace nor in {in_bucket}, where it was" in said
    assert f"copy the folder of its shards into {in_bucket}/shards" in said
