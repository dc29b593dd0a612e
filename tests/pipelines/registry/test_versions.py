"""Runs, logged models and registered versions in a real MLflow: SQLite in the workspace."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gan_train import recipes
from gan_train.config import Config
from gan_train.errors import UserError
from pipelines.registry import logged_model, reigns, turns, versions
from pipelines.registry.promotion import best_checkpoint
from pipelines.registry.provenance import COMMIT_TAG, VERSION_TAG, source_tags
from pipelines.registry.tracking import connect, tracking_uri
from tests.pipelines.registry_runs import (
    METRIC,
    Killed,
    Run,
    config,
    index,
    kill_after,
    logged_metrics,
    written_metrics,
)

IDS = {"ray_job": "raysubmit_1", "prefect_flow_run": "0199-flow"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for the module, for making one takes seconds; every test has its own model."""
    return tmp_path_factory.mktemp("workspace")


def finished_run(settings: Config, name: str, score: float, salt: str = "", n: int = 2000) -> Run:
    run = Run(settings, index(salt), name)
    run.metrics(1000)
    run.image(1000)
    run.checkpoint(1000, score, n)
    run.end(1000)
    return run


def register(run: Run) -> versions.Registration:
    return versions.register_best(run.config, run.folder, run.index, IDS)


def test_a_run_stands_in_mlflow_as_the_log_has_it(workspace: Path) -> None:
    settings = config(workspace, model="whole-run")
    run = Run(settings, index(), "whole")
    run.append("start", 0, precision="bf16")
    for nimg, score in ((1000, 60.0), (2000, 40.0), (3000, math.nan)):
        run.metrics(nimg)
        run.image(nimg)
        run.checkpoint(nimg, score)
    wins = {"name": "discriminator wins", "since": 1000, "evidence": "loss/D is 0"}
    run.append("diagnosis", 3000, found=[wins | {"name": "mode collapse"}])
    run.append("diagnosis", 3000, found=[wins, wins | {"name": "plateau"}])
    run.end(3000)

    done = register(run)

    client = connect(settings)
    found = client.get_run(done.run_id)
    assert found.data.tags["diagnosis"] == "discriminator wins, plateau"  # the newest
    logged = logged_metrics(client, done.run_id)
    # NaN is not equal to itself, so both sides are compared as text
    assert list(map(repr, logged)) == list(map(repr, written_metrics(run)))

    # parameters, ids, commit, data
    assert found.info.status == "FINISHED" and found.info.run_name == "whole"
    assert found.info.start_time == run.events()[0]["time_ms"]
    assert found.data.params["family.z_dim"] == "8"
    assert found.data.params["data.source"] == "pictures/letters.zip"
    assert (found.data.params["train.precision"], found.data.tags["precision"]) == ("auto", "bf16")
    assert found.data.tags["data_hash"] == run.index.content_hash
    assert IDS.items() <= found.data.tags.items()
    assert source_tags().items() <= found.data.tags.items()
    assert source_tags().keys() >= {COMMIT_TAG, VERSION_TAG}
    (data,) = found.inputs.dataset_inputs
    assert data.dataset.name == "letters.zip"
    assert run.index.content_hash.startswith(data.dataset.digest)

    # images by step, named as MLflow itself names them: its UI goes by the name
    client.log_image(done.run_id, Image.new("L", (8, 8)), key="theirs", step=7)
    names = [Path(file.path).name for file in client.list_artifacts(done.run_id, "images")]
    pattern = (
        r"(samples|theirs)\+step\+(\d+)\+timestamp\+\d{13}\+[0-9a-f-]{36}(\+compressed\.webp|\.png)"
    )
    matches = [re.fullmatch(pattern, name) for name in names]
    assert all(matches), names
    steps = sorted((m[1], int(m[2]), m[3]) for m in matches if m)
    theirs = [(end, step) for key, step, end in steps if key == "theirs"]
    assert len(theirs) == 2
    assert [s for k, s, end in steps if k == "samples" and end == ".png"] == [1000, 2000, 3000]
    assert [s for k, s, end in steps if k == "samples" and end != ".png"] == [1000, 2000, 3000]
    assert found.data.tags["mlflow.loggedImages"] == "True"

    # a logged model per checkpoint, found by its score
    models = client.search_logged_models(
        [found.info.experiment_id],
        filter_string=f"source_run_id = '{done.run_id}' AND metrics.{METRIC} > 0",
        order_by=[{"field_name": f"metrics.{METRIC}", "ascending": True}],
    )
    assert [model.name for model in models] == [
        "checkpoint-000000002000",
        "checkpoint-000000001000",
    ]
    (value,) = [m for m in models[0].metrics if m.key == METRIC]
    assert (value.value, value.step, value.dataset_name) == (40.0, 2000, "letters.zip")
    assert sorted(out.step for out in found.outputs.model_outputs) == [1000, 2000, 3000]

    # the best, not the newest, became the version; its card shows its picture
    version = client.get_model_version("whole-run", str(done.version))
    assert version.tags["images_seen"] == "2000"
    assert version.tags["precision"] == "bf16" and "precision bf16" in version.description
    assert version.tags["git_commit"] == source_tags()[COMMIT_TAG]
    assert version.tags[VERSION_TAG] == source_tags()[VERSION_TAG]
    picture = client.list_artifacts(done.run_id, "model_card")
    assert [file.path for file in picture] == ["model_card/000000002000.png"]
    assert "get-artifact?path=model_card%2F000000002000.png" in version.description


def test_versions_become_champion_by_their_scores(workspace: Path) -> None:
    settings = config(workspace, model="contest")
    client = connect(settings)
    assert versions.champion(settings) is None

    first = register(finished_run(settings, "a", 50.0))
    assert (first.version, first.alias) == (1, "champion")
    worse = register(finished_run(settings, "b", 60.0))
    assert (worse.version, worse.alias) == (2, "challenger")
    assert "worse than 50" in worse.reason and "version 1" in worse.reason
    equal = register(finished_run(settings, "c", 50.0))
    assert equal.alias == "challenger" and "equals" in equal.reason
    better = register(finished_run(settings, "d", 45.0))
    assert better.alias == "champion"
    other_data = register(finished_run(settings, "e", 1.0, salt="other"))
    assert other_data.alias == "challenger" and "not comparable" in other_data.reason
    other_n = register(finished_run(settings, "f", 1.0, n=500))
    assert other_n.alias == "challenger" and "500" in other_n.reason

    now = versions.champion(settings)
    assert now is not None and now.version == better.version == 4
    assert now.reason == better.reason and now.score == 45.0
    model = client.get_registered_model("contest")
    assert {k: int(v) for k, v in model.aliases.items()} == {"champion": 4, "challenger": 6}

    tags = client.get_model_version("contest", "6").tags
    assert tags["reason"] == other_n.reason
    assert (tags["family"], tags["recipe"], tags["resolution"]) == ("progan", "tiny", "8")
    assert (tags["metric"], tags["score"], tags["n"]) == (METRIC, "1.0", "500")
    assert tags["data_hash"] == index().content_hash
    assert tags["config_hash"] == versions.config_hash(settings)
    assert IDS.items() <= tags.items()

    # by hand: not across protocols, unless someone insists; a worse score is a person's choice
    with pytest.raises(UserError, match="cannot be compared"):
        versions.promote(settings, 6)
    assert versions.promote(settings, 2).alias == "champion"
    forced = versions.promote(settings, 6, force=True)
    assert forced.version == 6 and "by hand over version 2" in forced.reason
    aliases = client.get_registered_model("contest").aliases
    assert {k: int(v) for k, v in aliases.items()} == {"champion": 6}
    with pytest.raises(UserError, match="no version or alias '77'; versions: 1, 2, 3, 4, 5, 6"):
        versions.promote(settings, 77)


def test_registering_again_is_the_same_version(workspace: Path) -> None:
    settings = config(workspace, model="again")
    run = finished_run(settings, "again", 50.0)
    first = register(run)
    assert register(run) == first

    run.checkpoint(2000, 30.0)  # training went on
    second = register(run)
    assert (second.version, second.alias, second.run_id) == (2, "champion", first.run_id)


def test_no_pickle_and_the_same_weights(workspace: Path) -> None:
    settings = config(workspace, model="files")
    run = finished_run(settings, "files", 50.0)
    done = register(run)

    suffixes = {path.suffix for path in (workspace / "mlartifacts").rglob("*") if path.is_file()}
    known = {".json", ".safetensors", ".png", ".webp", ".py", ".typed", ".txt", ".yaml", ""}
    known |= {".css", ".j2"}  # of the page of a run, with the code that a version carries
    assert suffixes <= known, suffixes

    folder = versions.download(settings, "champion")
    assert folder == versions.download(settings, str(done.version))
    weights = run.folder / "checkpoints" / "000000001000" / "generator.safetensors"
    assert (folder / weights.name).read_bytes() == weights.read_bytes()

    broken = bytearray(weights.read_bytes())
    broken[-1] ^= 1
    (folder / weights.name).write_bytes(broken)
    with pytest.raises(UserError, match="SHA-256 differs"):
        versions.download(settings, "champion")
    with pytest.raises(UserError, match="no version or alias 'best'"):
        versions.download(settings, "best")


def files_of(client: Any, model_id: str, path: str | None = None) -> set[str]:
    """All files of a logged model."""
    found: set[str] = set()
    for file in client.list_logged_model_artifacts(model_id, path):
        found |= files_of(client, model_id, file.path) if file.is_dir else {file.path}
    return found


WEIGHTS = {"artifacts/generator/generator.json", "artifacts/generator/generator.safetensors"}


def test_only_the_registered_checkpoint_is_a_served_model(workspace: Path) -> None:
    """The others have weights, scores and tags, and no copy of the source."""
    settings = config(workspace, model="served-one")
    run = Run(settings, index(), "served-one")
    for nimg, score in ((1000, 60.0), (2000, 40.0), (3000, 50.0)):
        run.checkpoint(nimg, score)
    run.end(3000)
    done = register(run)
    client = connect(settings)
    experiment = client.get_run(done.run_id).info.experiment_id
    models = client.search_logged_models([experiment], f"source_run_id = '{done.run_id}'")
    files = {model.name: files_of(client, model.model_id) for model in models}
    assert files["checkpoint-000000001000"] == files["checkpoint-000000003000"] == WEIGHTS
    whole = files["checkpoint-000000002000"]
    assert whole > WEIGHTS | {"MLmodel", "served_model.py", "code/gan_train/inference.py"}
    assert {str(model.status) for model in models} == {"READY"}
    assert all(re.fullmatch("[0-9a-f]{64}", model.tags["weights_sha256"]) for model in models)

    # another one later: from the weights in MLflow, for the folder may be pruned by then
    shutil.rmtree(run.folder / "checkpoints")
    (later,) = [model for model in models if model.name == "checkpoint-000000003000"]
    assert logged_model.complete(client, later).tags["family"] == "progan"
    assert files_of(client, later.model_id) == whole


@pytest.mark.fault(
    "kill in the middle of a registration",
    "registering again completes it: one version, its alias, its reason",
)
def test_registration_is_taken_up_after_a_kill(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every n: the registration dies right after its n-th call was obeyed, and is repeated."""
    writers = [
        *("create_registered_model", "log_model_artifacts", "set_logged_model_tags"),
        *("log_model_artifact", "log_artifact", "create_model_version"),
        *("set_registered_model_alias", "set_model_version_tag", "update_registered_model"),
        *("set_registered_model_tag", "delete_model_version"),
    ]
    monkeypatch.setattr(turns, "LIFE_S", 0.3)
    died: list[str] = []
    for limit in range(1, 100):
        settings = config(workspace, model=f"taken-up-{limit}")
        run = finished_run(settings, f"taken-up-{limit}", 50.0)
        assert versions.ship(settings, run.folder, run.index, IDS)
        with monkeypatch.context() as patch:
            kill_after(patch, writers, limit)
            try:
                register(run)
            except Killed as where:
                died.append(str(where))
        done = register(run)
        assert (done.version, done.alias) == (1, "champion")
        client = connect(settings)
        (version,) = client.search_model_versions(f"name = '{done.model}'")
        page = client.get_registered_model(done.model)
        assert version.tags["reason"] == done.reason == f"first scored version, {METRIC} 50"
        assert [(one.version, one.reason) for one in reigns.of(page)] == [(1, done.reason)]
        assert page.description.count(done.reason) == 1
        model = client.get_logged_model(version.tags["logged_model"])
        assert model.tags["mlflow.modelVersions"] == f'[{{"name": "{done.model}", "version": 1}}]'
        assert version.tags["weights_sha256"] == model.tags["weights_sha256"]
        if len(died) < limit:
            break
    assert set(died) == set(writers), died
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(settings))
    import mlflow.pyfunc  # not before `connect` has set what it reads

    loaded = mlflow.pyfunc.load_model(str(version.source))
    assert loaded.metadata.metadata["family"] == "progan"


def test_a_run_without_a_score_is_not_registered(workspace: Path) -> None:
    run = Run(config(workspace, model="unscored"), index(), "unscored")
    run.metrics(1000)
    with pytest.raises(UserError, match="no checkpoint with a score"):
        register(run)


def test_a_resumed_run_goes_on_in_mlflow(workspace: Path) -> None:
    settings = config(workspace, model="resumed")
    run = Run(settings, index(), "resumed")
    run.metrics(1000)
    run.end(1000, "stopped")
    assert versions.ship(settings, run.folder, run.index, IDS)
    state = json.loads((run.folder / "mlflow.json").read_text())
    client = connect(settings)
    assert client.get_run(state["run_id"]).info.status == "KILLED"

    more = recipes.change(settings, {"cluster.workers": 4})
    with versions.Shipper(more, run.folder, run.index, {"ray_job": "raysubmit_2"}) as shipper:
        run.metrics(2000)
        run.end(2000)
    assert shipper.mlflow_run_id == state["run_id"]
    found = client.get_run(state["run_id"])
    assert found.info.status == "FINISHED"
    assert found.data.params["cluster.workers"] == "1"
    assert found.data.tags["resumed.cluster.workers"] == "4"
    assert found.data.tags["ray_job"] == "raysubmit_2"
    assert logged_metrics(client, state["run_id"]) == written_metrics(run)

    # nothing left to train: the run is still finished
    with versions.Shipper(more, run.folder, run.index, {}):
        pass
    assert client.get_run(state["run_id"]).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("diverged"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_training_that_breaks_off(workspace: Path, error: BaseException, status: str) -> None:
    settings = config(workspace)
    run = Run(settings, index(), f"broken-{status}")
    with (
        pytest.raises(type(error)),
        versions.Shipper(settings, run.folder, run.index, {}) as shipper,
    ):
        run.metrics(1000)
        raise error
    client = connect(settings)
    assert shipper.mlflow_run_id is not None
    assert client.get_run(shipper.mlflow_run_id).info.status == status
    assert logged_metrics(client, shipper.mlflow_run_id) == written_metrics(run)

    # taken up again with nothing left to train, it ends before MLflow hears that it trains
    with versions.Shipper(settings, run.folder, run.index, {}):
        run.end(1000)
    assert client.get_run(shipper.mlflow_run_id).info.status == "FINISHED"


def test_long_values_are_cut_and_kept_whole_beside(workspace: Path) -> None:
    settings = config(workspace)
    names = tuple(f"class-{i:05d}" for i in range(1000))
    settings = recipes.change(settings, {"data.only_classes": names})
    run = Run(settings, index(), "long")
    run.metrics(1000)
    assert versions.ship(settings, run.folder, run.index, {"long": "x" * 9000})
    run_id = json.loads((run.folder / "mlflow.json").read_text())["run_id"]
    client = connect(settings)
    found = client.get_run(run_id)
    assert len(found.data.params["data.only_classes"]) == 6000
    assert found.data.params["data.only_classes"].endswith("…")
    assert found.data.tags["long"].endswith("…")
    whole = Path(client.download_artifacts(run_id, "config.json", str(run.folder)))
    assert json.loads(whole.read_text())["data"]["only_classes"] == list(names)
    # and again: a cut value is no change
    run.metrics(2000)
    assert versions.ship(settings, run.folder, run.index, {"long": "x" * 9000})
    assert not [key for key in client.get_run(run_id).data.tags if key.startswith("resumed.")]


def test_the_best_checkpoint_is_of_the_log(workspace: Path) -> None:
    run = finished_run(config(workspace), "best", 50.0)
    best = best_checkpoint(run.events())
    assert best is not None and best["path"] == "checkpoints/000000001000"
