"""The short forms and the files of infra/prefect, as far as no server is needed to check them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.settings import get_current_settings
from prefect.utilities.schema_tools import ValidationError, validate

from gan_train import recipes
from gan_train.errors import UserError
from pipelines.comparison.scheduled import Contest, compare_again_flow
from pipelines.flows.nightly import NOTHING_NEW, nightly_flow
from pipelines.flows.on_demand import Training, on_demand_flow
from pipelines.flows.plan import precheck
from tests.training import tiny_images

ROOT = Path(__file__).parents[3]
INFRA = ROOT / "infra" / "prefect"
FLOWS = {
    "nightly": nightly_flow,
    "weekly-comparison": compare_again_flow,
    "on-demand": on_demand_flow,
}


def deployments() -> dict[str, dict[str, Any]]:
    found = yaml.safe_load((INFRA / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    return {deployment["name"]: deployment for deployment in found}


def schema(flow: Any) -> dict[str, Any]:
    tree: dict[str, Any] = flow.parameters.model_dump()
    return tree


@pytest.mark.parametrize("name", FLOWS)
def test_a_deployment_names_its_flow_and_its_parameters_are_valid(name: str) -> None:
    deployment, flow = deployments()[name], FLOWS[name]
    assert deployment["entrypoint"] == f"{flow.fn.__module__}.{flow.fn.__name__}"
    validate(deployment["parameters"], schema(flow), raise_on_error=True)
    flow.validate_parameters(deployment["parameters"])


def test_there_are_no_other_deployments() -> None:
    assert deployments().keys() == FLOWS.keys()
    nightly = deployments()["nightly"]["parameters"]["config"]
    assert recipes.check(nightly) == recipes.load("demo")


def test_the_form_is_short_and_offers_the_recipes() -> None:
    form = schema(on_demand_flow)["definitions"]["Training"]
    assert list(form["properties"]) == ["recipe", "minutes", "workers", "seed", "settings"]
    assert form["required"] == ["recipe"]
    assert "demo" in form["properties"]["recipe"]["enum"]
    contest = schema(compare_again_flow)["definitions"]["Contest"]["properties"]
    assert "demo" in contest["recipes"]["items"]["enum"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"recipe": "demmo"}, "'demmo' is not one of"),
        ({"minutes": 0}, "0 is less than or equal to the minimum of 0"),
        ({"workers": 1.5}, "1.5 is not valid under any of the given schemas"),
        ({"workers": 0}, "0 is less than the minimum of 1"),
        ({"wrokers": 2}, "'wrokers' was unexpected"),
        ({"settings": ["train.batch"]}, "'train.batch' does not match"),
        ({"settings": ["trian.batch=64"]}, "'trian.batch=64' does not match"),
    ],
)
def test_the_server_refuses_what_the_schema_tells(changes: dict[str, Any], says: str) -> None:
    """As it does when a run is asked for, by the UI, the API or `prefect deployment run`."""
    wanted = {"training": {"recipe": "demo", **changes}}
    with pytest.raises(ValidationError, match=says):
        validate(wanted, schema(on_demand_flow), raise_on_error=True)


@pytest.mark.parametrize(
    ("settings", "recipe"),
    [
        (["train.bacth=64"], "demo"),
        (["train.batch=0", "data.resolution=33"], "demo"),
        (["train.batch"], "demo"),
        ([], "demmo"),
    ],
)
def test_a_run_refuses_the_rest_in_the_words_of_the_command_line(
    settings: list[str], recipe: str
) -> None:
    with pytest.raises(UserError) as told:
        recipes.load(recipe, settings)
    state = on_demand_flow.fn(Training(recipe=recipe, settings=settings))
    assert state.is_failed() and state.message == str(told.value)
    state = compare_again_flow.fn(Contest(recipes=["demo", recipe], settings=settings))
    assert state.is_failed() and str(told.value) in state.message


def test_a_run_refuses_what_does_not_fit_the_data(tmp_path: Path) -> None:
    asked = Training(recipe="demo", workers=5, settings=[f"workspace={tmp_path}"])
    with pytest.raises(UserError, match="lanes") as told:
        precheck(asked.config())
    state = on_demand_flow.fn(asked)
    assert state.is_failed() and state.message == str(told.value)
    assert not (tmp_path / "shards").exists()


def test_a_form_becomes_a_configuration() -> None:
    asked = Training(recipe="demo", workers=4, seed=7, settings=["train.batch=64"])
    assert asked.config() == recipes.load("demo", ["train.batch=64", "cluster.workers=4", "seed=7"])
    assert Training(recipe="demo").config() == recipes.load("demo")


def test_a_comparison_is_made_again_when_images_have_come(tmp_path: Path) -> None:
    source = tiny_images(tmp_path / "source")
    contest = Contest(
        recipes=["demo", "stylegan2-glyphs"],
        settings=[f"data.source={source}", f"workspace={tmp_path}", "evaluate.images=16"],
    )
    first, again = contest.comparison(), contest.comparison()
    assert first == again and first.minutes == 30 and first.seeds == 1
    several = contest.model_copy(update={"seeds": 3}).comparison()
    assert several.seeds == 3 and len(several.trainings) == 6
    assert all(config.data.grow for config in first.configs)
    (source / "red" / "9.png").write_bytes((source / "red" / "0.png").read_bytes())
    later = contest.comparison()
    assert later.id != first.id
    seeds = [config.seed for one in (first, later) for config in one.configs]
    assert len(set(seeds[::2])) == 2


def automations() -> list[AutomationCore]:
    """As `prefect automation create` reads the file."""
    tree = yaml.safe_load((INFRA / "automations.yaml").read_text(encoding="utf-8"))
    return [AutomationCore.model_validate(one) for one in tree["automations"]]


def test_prefect_reads_the_automations() -> None:
    found = automations()
    triggers = [one.trigger for one in found]
    assert all(isinstance(trigger, EventTrigger) for trigger in triggers)
    expected = {name for t in triggers if isinstance(t, EventTrigger) for name in t.expect}
    code = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "pipelines" / "flows").glob("*.py")
    )
    ours = {name for name in expected if name.startswith("gan-train.")}
    assert ours == {"gan-train.champion", "gan-train.alarm"}
    assert all(f'"{name}"' in code for name in ours), "the flows send what is waited for"


def test_a_run_that_ends_is_not_taken_for_dead() -> None:
    """The end of a night without news is an event named by its own state."""
    (dead,) = (
        one.trigger
        for one in automations()
        if isinstance(one.trigger, EventTrigger) and one.trigger.posture == Posture.Proactive
    )
    assert dead.expect == {"prefect.flow-run.*"}
    assert f"prefect.flow-run.{NOTHING_NEW}".startswith("prefect.flow-run.")
    beat = get_current_settings().flows.heartbeat_frequency
    assert beat is not None and dead.within.total_seconds() >= 3 * beat


def test_the_kubernetes_pool_differs_from_prefects_own_by_what_it_must() -> None:
    from prefect.server.api import collections_data  # the templates that Prefect comes with

    file = Path(next(iter(collections_data.__path__))) / "views/aggregate-worker-metadata.json"
    metadata = json.loads(file.read_text(encoding="utf-8"))
    theirs = metadata["prefect-kubernetes"]["kubernetes"]["default_base_job_configuration"]
    ours = json.loads((INFRA / "kubernetes-pool.json").read_text(encoding="utf-8"))
    assert ours["variables"]["properties"].keys() - theirs["variables"]["properties"].keys() == {
        "gpus"
    }
    assert ours["job_configuration"].keys() == theirs["job_configuration"].keys()
    pod = ours["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    volume = ROOT / "infra/kubernetes/base/workspace.yaml"
    claim = yaml.safe_load(volume.read_text(encoding="utf-8"))
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    (container,) = pod["containers"]
    limits = container["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "{{ gpus }}"
    named = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(ours["job_configuration"])))
    assert named <= ours["variables"]["properties"].keys()
