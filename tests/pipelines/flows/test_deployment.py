"""The deployments of infra/prefect on a real Prefect server: run by a real worker, one after
another, and cancelled."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from gan_train import recipes
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import list_checkpoints
from pipelines.flows.on_demand import Training
from tests.prefect_site import INFRA, PREFECT, Site
from tests.training import tiny_config, tiny_images

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    started = Site(tmp_path_factory.mktemp("site"))
    try:
        started.call(PREFECT, "work-pool", "create", "gan-train", "--type", "process")
        started.call(PREFECT, "work-pool", "set-concurrency-limit", "gan-train", "1")
        deploy = ("deploy", "--prefect-file", str(INFRA / "prefect.yaml"), "--all")
        started.call(PREFECT, "--no-prompt", *deploy)
        started.call(
            PREFECT, "automation", "create", "--from-file", str(INFRA / "automations.yaml")
        )
        started.start_worker()
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_images(tmp_path_factory.mktemp("images") / "source")


def long_settings(source: Path, workspace: Path) -> list[str]:
    """Settings that make the demo tiny, with a checkpoint soon, and long."""
    return [
        *("name=long", f"workspace={workspace}", f"data.source={source}", "data.resolution=8"),
        *("data.shard_images=16", "data.lanes=4", "data.block=4"),
        *("family.channels={4: 8, 8: 8}", "family.z_dim=8", "family.milestones_from=4"),
        *("family.fade_kimg=0.064", "family.stable_kimg=0.064"),
        *("train.batch=16", "train.total_kimg=1000", "train.checkpoint_kimg=10"),
        *("evaluate.metrics=[diversity]", "evaluate.images=16"),
    ]


@pytest.mark.fault(
    "a flow run cancelled under a Prefect worker",
    "the workers save; Cancelled, nothing crashed or left running; its page says how to go on",
)
def test_deployed_run_by_a_worker_and_cancelled(
    site: Site, source: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    workspace = tmp_path / "workspace"
    deployment = site.deployment("nightly/nightly")
    (schedule,) = deployment["schedules"]
    assert schedule["schedule"]["cron"] == "0 2 * * *" and schedule["active"]
    properties = deployment["parameter_openapi_schema"]["definitions"]["Config"]["properties"]
    assert properties.keys() == Config.model_fields.keys() - {"store"}, (
        "the form shows the whole tree"
    )
    site.wait(lambda: any(run["auto_scheduled"] for run in site.post("flow_runs/filter", {})), 60)

    # A wrong tree is refused when it is asked for
    config = tiny_config(source, workspace, evaluate__metrics=["frechet"], evaluate__batch=8)
    wrong = {"parameters": {"config": config.model_dump(mode="json") | {"nmae": "x"}}}
    answer = httpx.post(f"{site.url}/deployments/{deployment['id']}/create_flow_run", json=wrong)
    assert answer.status_code in (409, 422) and "nmae" in answer.text

    # So is a form with a mistake that a schema can tell, also by the command of Prefect
    form = site.deployment("on-demand/on-demand")["id"]
    for mistake, says in (
        ({"recipe": "demmo"}, "'demmo' is not one of"),
        ({"recipe": "demo", "workers": 0}, "0 is less than the minimum of 1"),
        ({"recipe": "demo", "settings": ["train.batch"]}, "'train.batch' does not match"),
    ):
        wrong = {"parameters": {"training": mistake}}
        answer = httpx.post(f"{site.url}/deployments/{form}/create_flow_run", json=wrong)
        assert answer.status_code == 409 and says in answer.text
    by_command = (PREFECT, "deployment", "run", "on-demand/on-demand", "--param")
    said = site.call(*by_command, 'training={"recipe": "demmo"}', status=1)
    assert "'demmo' is not one of" in " ".join(said.split())
    assert not site.post("flow_runs/filter", {"deployments": {"id": {"any_": [form]}}})

    # The rest is refused before anything is done, once, in the words of `gan-train run`
    bad = site.run(form, training={"recipe": "demo", "settings": ["train.bacth=64"]})
    with pytest.raises(UserError) as told:
        recipes.load("demo", ["train.bacth=64"])
    site.wait(lambda: site.state(bad) == "FAILED", 120)
    refused = site.get(f"flow_runs/{bad}")
    assert (refused["state"]["message"], refused["run_count"]) == (str(told.value), 1)

    # A whole run, and one behind it, which waits for the pool's limit
    first = site.run(deployment["id"], config=config.model_dump(mode="json"))
    asked = {"recipe": "demo", "workers": 2, "settings": long_settings(source, workspace)}
    long = Training.model_validate(asked).config()
    second = site.run(form, training=asked)
    site.wait(lambda: site.state(first) in ("COMPLETED", "FAILED", "CRASHED"), 400)
    assert site.state(first) == "COMPLETED", site.get(f"flow_runs/{first}")["state"]
    (run_dir,) = run_folder.runs_of(config)
    assert run_folder.finished(run_folder.read_events(run_dir))

    # The other is cancelled while it trains
    site.wait(
        lambda: bool(list(run_folder.folder(long).glob("long-*/checkpoints/*/scores.json"))), 400
    )
    ended, begun = (
        site.get(f"flow_runs/{first}")["end_time"],
        site.get(f"flow_runs/{second}")["start_time"],
    )
    assert datetime.fromisoformat(begun) >= datetime.fromisoformat(ended)
    assert site.processes()
    asked_to = {"state": {"type": "CANCELLING", "message": "too dear"}}
    site.post(f"flow_runs/{second}/set_state", asked_to)
    site.wait(lambda: site.state(second) == "CANCELLED", 120)
    (long_dir,) = run_folder.folder(long).glob("long-*")
    events = run_folder.read_events(long_dir)
    assert events[-1]["status"] == "stopped"
    assert int(list_checkpoints(long_dir)[0].name) == events[-1]["nimg"]
    site.wait(lambda: not site.processes(), 60)
    record_property("lost", "nothing")

    # Nothing crashed on the way, and it is told where to go on
    of_flows, of_tasks = site.states("flow_run"), site.states("task_run")
    assert not [state for state in of_flows + of_tasks if state["type"] == "CRASHED"]
    said = f"stopped at {events[-1]['nimg'] / 1000:.1f} kimg; go on with --resume {long_dir.name}"
    assert said in {state["message"] for state in of_flows}
    (page,) = site.artifacts(second, "stopped")
    assert "cancelled: too dear" in page["data"]
    assert f"gan-train run {long_dir}/config.yaml --resume {long_dir.name}\n```" in page["data"]
    with closing(sqlite3.connect(workspace / "mlflow.db")) as database:
        statuses = {status for (status,) in database.execute("SELECT status FROM runs")}
    assert statuses == {"FINISHED", "KILLED"}
