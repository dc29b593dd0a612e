"""What MLflow shows of runs and versions: columns of the table, links, a picture that fits."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from gan_train import recipes
from pipelines.registry import run_table, versions
from pipelines.registry.card_picture import card_picture
from pipelines.registry.lineage import lineage
from pipelines.registry.tracking import connect, experiment_of
from tests.pipelines.registry_runs import METRIC, Run, config, index


def test_the_best_checkpoint_so_far(tmp_path: Path) -> None:
    run = Run(config(tmp_path), index())
    run.metrics(1000)
    for nimg, score in ((1000, 50.0), (2000, 40.00049), (3000, 45.0)):
        run.checkpoint(nimg, score)
    told = [run_table.best_until(run.events(), nimg) for nimg in (0, 1000, 2999, 3000)]
    expected = {"best/score": 40.0, "best/kimg": 2.0, "best/reference": 5.25}
    assert told[0] == ({}, None)
    assert told[1] == ({"best/score": 50.0, "best/kimg": 1.0, "best/reference": 5.25}, METRIC)
    assert told[2] == told[3] == (expected, METRIC)
    run.checkpoint(4000, 30.0, error=0.6149)
    assert run_table.best_until(run.events(), 4000)[0]["best/error"] == 0.61


def test_the_view_names_what_runs_have(workspace: Path) -> None:
    """Its columns are metrics, parameters and tags of a real run, and its order is by a column."""
    settings = config(workspace)
    run = Run(settings, index())
    run.append("start", 0, precision="bf16", device="AMD EPYC")
    run.image(1000)
    run.checkpoint(1000, 50.0, error=0.5)
    done = versions.register_best(settings, run.folder, run.index, {"ray.job_id": "01"})
    client = connect(settings)
    experiment = client.get_experiment(experiment_of(client, settings))
    view = json.loads(experiment.tags["mlflow.sharedViewState.gan-train"])
    assert "viewStateShareKey=gan-train" in run_table.page(experiment.experiment_id)
    data = client.get_run(done.run_id).data
    known = {"metrics": data.metrics, "params": data.params, "tags": data.tags}
    for column in view["selectedColumns"]:
        kind, _, name = column.partition(".")
        assert name.strip("`") in known[kind], column
    assert view["orderByKey"] in view["selectedColumns"] and view["orderByAsc"] is True
    assert data.tags["measure"] == METRIC

    card = client.get_model_version(done.model, str(done.version)).description
    assert f"- run [run](#/experiments/{experiment.experiment_id}/runs/{done.run_id}?" in card
    assert "- Ray job `01`" in card and "model_card%2F000000001000.png" in card


def test_an_experiment_made_elsewhere_gets_the_view_and_keeps_its_kind(workspace: Path) -> None:
    settings = config(workspace, experiment="ours")
    client = connect(settings)
    made = client.create_experiment("ours", tags={"mlflow.experimentKind": "genai_development"})
    assert experiment_of(client, settings) == made
    tags = client.get_experiment(made).tags
    assert tags["mlflow.experimentKind"] == "genai_development"
    assert run_table.VIEW.items() <= tags.items()
    other = config(workspace, experiment="new")
    tags = client.get_experiment(experiment_of(client, other)).tags
    assert (run_table.VIEW | run_table.KIND).items() <= tags.items()


def told(tmp_path: Path, tags: dict[str, str], **changes: str) -> list[str]:
    settings = recipes.change(
        config(tmp_path), {key.replace("__", "."): value for key, value in changes.items()}
    )
    return lineage(settings, "4", "abc", "demo_1", tags)


def test_lineage_links_where_an_address_is_known(tmp_path: Path) -> None:
    ids = {"prefect.flow_run_id": "f1", "ray.job_id": "01", "compare": "c7"}
    run, *others = told(tmp_path, ids)
    assert run.startswith(
        "run [demo_1](#/experiments/4/runs/abc?workflowType=machine_learning), one of [all runs]("
    )
    assert others[:2] == ["Prefect flow run `f1`", "Ray job `01`"]
    assert "searchFilter=tags.compare = 'c7'" in unquote(others[2])
    assert len(told(tmp_path, {})) == 1
    known = told(
        tmp_path,
        ids | {"ray.submission_id": "demo-1"},
        flow__server="http://prefect:4200/api",
        cluster__jobs="http://ray:8265/",
    )
    assert known[1] == "Prefect flow run [f1](http://prefect:4200/runs/flow-run/f1)"
    assert known[2] == "Ray job [demo-1](http://ray:8265/#/jobs/demo-1)"


@pytest.mark.parametrize(
    ("folder", "parent"),
    [
        (
            "models/faces/3-0123456789abcdef",
            "[faces version 3](#/models/faces/versions/3?workflowType=machine_learning)",
        ),
        ("demo-1/checkpoints/000000108000", "`demo-1/checkpoints/000000108000`"),
    ],
)
def test_a_version_names_its_parent(folder: str, parent: str, tmp_path: Path) -> None:
    found = told(tmp_path, {}, train__start_from=str(tmp_path / folder))
    assert found[1] == f"began with the networks of {parent}"


def test_the_picture_of_a_card_fits_a_narrow_window(tmp_path: Path) -> None:
    run = Run(config(tmp_path), index())
    run.image(1000)
    for nimg, size in ((2000, (1600, 800)), (3000, (100, 100))):
        run.image(nimg)
        Image.new("L", size, 200).save(run.folder / "samples" / f"{nimg:012d}.png")
    for nimg, size in ((1999, (320, 192)), (2500, (480, 240)), (3000, (100, 100))):
        with card_picture(run.folder, nimg) as narrow:
            assert narrow is not None and narrow.name == f"{nimg // 1000:09d}000.png"
            with Image.open(narrow) as picture:
                assert picture.size == size
    (run.folder / "samples" / "000000001000.png").unlink()
    with card_picture(run.folder, 1999) as none:
        assert none is None
