"""The flows on real Prefect, Ray and MLflow: the whole chain, what it shows, and cancelling it."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ParameterTypeError
from prefect.states import Cancelling

from gan_train import recipes
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.files.atomic import read_json
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import SCORES, list_checkpoints
from gan_train.runs.integrity import REPORTED
from gan_train.text import markdown
from pipelines.compute import training
from pipelines.flows import artifacts as shown
from pipelines.flows import pipeline
from pipelines.registry import tracking, versions
from tests.training import tiny_config
from tests.unit.test_text import HOSTILE

pytestmark = [
    pytest.mark.slow,
    # the code of Ray, MLflow and Prefect uses what they have deprecated
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning"),
    pytest.mark.usefixtures("prefect_server", "local_ray"),
]


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as connected:
        yield connected


def scored(source: Path, workspace: Path, **changes: Any) -> Config:
    """The tiny configuration with a Fréchet distance, which decides what is registered."""
    return tiny_config(
        source,
        workspace,
        evaluate__metrics=["frechet", "diversity"],
        evaluate__batch=8,
        **changes,
    )


def artifacts(client: SyncPrefectClient, config: Config) -> dict[str, Any]:
    """The newest artifact of each kind that this configuration's flow runs left, by key."""
    mine = [run.id for run in client.read_flow_runs() if of(config, run.parameters)]
    found = client.read_artifacts(
        flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=mine)), limit=200
    )
    return {str(a.key): a for a in sorted(found, key=lambda a: str(a.created))}


def of(config: Config, parameters: dict[str, Any]) -> bool:
    return bool(parameters.get("config", {}).get("workspace") == str(config.workspace))


def test_the_whole_chain_then_again(
    client: SyncPrefectClient, tiny_source: Path, tmp_path: Path
) -> None:
    config = scored(tiny_source, tmp_path / "workspace")
    run_dir, first = pipeline.run_flow(config)
    assert run_folder.finished(run_folder.read_events(run_dir))
    assert (first.version, first.alias) == (1, "champion")
    assert first.metric == "fd_efficientnet_lite0"
    assert versions.download(config, "champion").is_dir()
    # on latents that did not choose it; the flow found what training had left
    (reported,) = (read_json(path) for path in run_dir.glob(f"checkpoints/*/{REPORTED}"))
    assert first.score == reported["scores"][first.metric]
    assert reported["protocol"]["latents"] == 1
    assert first.score not in [row[first.metric] for row in run_folder.score_table(run_dir)]

    shown = artifacts(client, config)
    assert {key: a.type for key, a in shown.items() if key in ("scores", "samples")} == {
        "scores": "table",
        "samples": "image",
    }
    progress = {
        a.description: a.data
        for a in client.read_artifacts(limit=200)
        if a.type == "progress" and a.data
    }
    assert progress["Shards written"] == 100.0
    assert "fd_efficientnet_lite0_null" in shown["scores"].data
    assert shown["samples"].data.startswith("data:image/png;base64,")
    assert "Written: **24 images**" in shown["data-set"].data
    assert "version 1** is `champion`" in shown["registered"].data

    # Again: shards are verified and kept, the new version is compared with the first
    tars = {path: path.stat().st_mtime_ns for path in config.workspace.glob("shards/*/*.tar")}
    _, second = pipeline.run_flow(config)
    assert tars == {path: path.stat().st_mtime_ns for path in tars}
    assert second.version == 2
    assert "version 1" in second.reason, "the same score is not better"
    assert second.alias == "challenger"
    assert "Verified: **24 images**" in artifacts(client, config)["data-set"].data

    # By hand
    assert pipeline.promote_flow(config, version=2).alias == "champion"
    rows = pipeline.evaluate_flow(config, run_dir.name)
    assert [row["kimg"] for row in rows] == [e["nimg"] / 1000 for e in checkpoints(run_dir)]


def test_names_are_text_in_artifacts(client: SyncPrefectClient) -> None:
    @flow
    def shows(name: str) -> None:
        shown.score_table([{"checkpoint": name, f"psnr_{name}": 1.0}], name)
        shown.image("hostile", "https://host/x.png", name)
        one = {"name": "mode collapse", "since": 2000, "evidence": name}
        shown.diagnosis(name, {"nimg": 4000, "found": [one]})

    for name in HOSTILE[:4]:
        shows(name)
        read = sorted(client.read_artifacts(limit=200), key=lambda a: str(a.created))
        newest = {str(a.key): a for a in read}
        told, column = markdown(name), markdown(f"psnr_{name}")
        assert newest["scores"].description == newest["hostile"].description == told
        assert json.loads(str(newest["scores"].data)) == [{"checkpoint": told, column: "1"}]
        diagnosis = f"{told} at 4 kimg:\n\n- **mode collapse** since 2 kimg: {told}. What usually"
        assert str(newest["diagnosis"].data).startswith(diagnosis)


def checkpoints(run_dir: Path) -> list[dict[str, Any]]:
    return [event for event in run_folder.read_events(run_dir) if event["kind"] == "checkpoint"]


def test_cancelling_saves_a_checkpoint_and_resuming_goes_on(
    client: SyncPrefectClient, tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = scored(
        tiny_source,
        tmp_path / "workspace",
        train__total_kimg=500,
        train__checkpoint_kimg=0.2,
        cluster__workers=2,
    )
    cancelled: list[str] = []

    def cancel() -> None:
        """As the UI does, once there is something to lose."""
        while not list(config.workspace.glob("train/*/checkpoints/*/scores.json")):
            if stop.wait(0.2):
                return
        (run,) = (
            run
            for run in client.read_flow_runs()
            if of(config, run.parameters) and run.parent_task_run_id is None
        )
        client.set_flow_run_state(run.id, Cancelling())
        cancelled.append(str(run.id))

    stop = threading.Event()
    thread = threading.Thread(target=cancel)
    thread.start()
    state = pipeline.run_flow(config, return_state=True)
    stop.set()
    thread.join()
    assert cancelled and state.is_cancelled(), state
    assert client.read_flow_run(cancelled[0]).state.is_cancelled()  # type: ignore[union-attr, arg-type]
    (run_dir,) = run_folder.folder(config).iterdir()
    reached = int(list_checkpoints(run_dir)[0].name)
    assert f"go on with --resume {run_dir.name}" in str(state.message)
    assert run_folder.read_events(run_dir)[-1]["status"] == "stopped"
    assert run_folder.read_events(run_dir)[-1]["nimg"] == reached, "all that was trained is saved"

    # What was saved is scored once, and then counts for the registry
    rows = pipeline.evaluate_flow(config, run_dir.name)
    assert rows[-1]["kimg"] * 1000 == reached and "fd_efficientnet_lite0" in rows[-1]
    assert (list_checkpoints(run_dir)[0] / SCORES).exists()
    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", None)
        assert pipeline.evaluate_flow(config, run_dir.name) == rows
        other = recipes.change(config, {"evaluate.images": 8})
        with pytest.raises(TypeError, match="not callable"):
            pipeline.evaluate_flow(other, run_dir.name)
    registered = pipeline.promote_flow(config, run_dir.name)  # which scores the best once more
    (report,) = run_dir.glob(f"checkpoints/*/{REPORTED}")
    (best,) = (row for row in rows if round(1000 * row["kimg"]) == int(report.parent.name))
    assert best["resolution"] == config.data.resolution
    reported = read_json(report)["scores"]["fd_efficientnet_lite0"]
    assert registered.score == reported != best["fd_efficientnet_lite0"]
    mlflow_run = tracking.connect(config).get_run(registered.run_id)
    assert mlflow_run.info.status == "KILLED", "as it was stopped, though scores came after that"

    # Go on to an end that is near
    near = recipes.change(config, {"train.total_kimg": (reached + 64) / 1000})
    assert pipeline.train_flow(near, resume=run_dir.name) == run_dir
    assert run_folder.finished(run_folder.read_events(run_dir))


def test_the_form_refuses_what_the_command_line_refuses(tiny_source: Path, tmp_path: Path) -> None:
    """Prefect validates the tree before a run starts, with every limit of the configuration."""
    schema = pipeline.run_flow.parameters.model_dump()
    assert schema["required"] == ["config"]
    assert schema["definitions"]["TrainConfig"]["properties"]["batch"]["minimum"] == 1
    good = tiny_config(tiny_source, tmp_path).model_dump(mode="json")
    assert pipeline.run_flow.validate_parameters({"config": good})[
        "config"
    ] == Config.model_validate(good)
    bad = copy.deepcopy(good)
    bad["train"]["bacth"] = 64
    with pytest.raises(ParameterTypeError, match=r"train\.bacth"):
        pipeline.run_flow.validate_parameters({"config": bad})


def test_training_without_shards_says_so(tiny_source: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_source, tmp_path / "workspace")
    with pytest.raises(UserError, match="run `gan-train shard`"):
        pipeline.train_flow(config)


def test_a_mistake_is_not_retried(
    client: SyncPrefectClient, tiny_source: Path, tmp_path: Path
) -> None:
    (tiny_source / "red" / "9.png").write_bytes(b"not a picture")
    config = tiny_config(tiny_source, tmp_path / "workspace", data__max_bad_fraction=0.0)
    with pytest.raises(UserError, match="max_bad_fraction"):
        pipeline.shard_flow(config)
    (run,) = (run for run in client.read_flow_runs() if of(config, run.parameters))
    (task,) = (t for t in client.read_task_runs(limit=200) if t.flow_run_id == run.id)
    assert task.run_count == 1
