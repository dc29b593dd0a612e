"""The flow `on-demand`: a recipe with the few settings that most people change, from a short form.

The whole tree is the form of `run_flow`. Here a recipe's name stands for it, and any other setting
is written as `--set` takes it. The server checks a form by its JSON Schema, before there is a run:
the names of the recipes, the limits of the numbers, unknown fields, the form of a setting. The flow
run checks the rest before it does anything, and then fails with the message of the command line.
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import Flow, flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import Failed
from pydantic import BaseModel, ConfigDict, Field

from gan_train import recipes
from gan_train.config import Config
from gan_train.errors import UserError
from pipelines.compute import jobs, sharding
from pipelines.flows.pipeline import run_flow
from pipelines.flows.plan import precheck


def offer_recipes(schema: dict[str, Any]) -> None:
    """Let a form offer the recipes that have a bare name where it is deployed."""
    offered = schema.get("items", schema)
    offered["enum"] = [path.stem for path in recipes.known()]


_GROUPS = "|".join(name for name in Config.model_fields if name != "store")
Setting = Annotated[str, Field(json_schema_extra={"pattern": rf"^\s*({_GROUPS})(\.[^=]*)?="})]
"""A setting as `--set` takes it. The server refuses what has no value, or no key of the tree at its
beginning; all other mistakes are told by the command line's own words."""


def refused(error: UserError) -> State[Any]:
    """The end of a flow run that was asked for what cannot be done: the words of the command line
    are all of its message."""
    return Failed(message=str(error))


class Training(BaseModel):
    """What to train: a recipe, and what is other than it says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: str = Field(
        description="The name of a recipe, as `gan-train recipes` lists it.",
        json_schema_extra=offer_recipes,
    )
    minutes: float | None = Field(
        None,
        gt=0,
        description="Make the schedule shorter or longer, so that all of it takes so long. Empty "
        "keeps the recipe's schedule.",
    )
    workers: int | None = Field(
        None, ge=1, description="The number of workers. Empty means the recipe's."
    )
    seed: int | None = Field(
        None, ge=0, description="The seed of all that is random. Empty means the recipe's."
    )
    settings: list[Setting] = Field(
        [],
        title="Other settings",
        description="Other settings of the recipe, each as `--set` takes it: `train.batch=64`. All "
        "of them: `gan-train config RECIPE`.",
    )

    def config(self) -> Config:
        """The configuration that is asked for. Raises UserError, as the command line does."""
        named = {"cluster.workers": self.workers, "seed": self.seed}
        chosen = [f"{key}={value}" for key, value in named.items() if value is not None]
        return recipes.load(self.recipe, [*self.settings, *chosen])


def stop_training(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """End the Ray job of a flow run that was cancelled or has died."""
    address = Training.model_validate(flow_run.parameters["training"]).config().cluster.jobs
    if address is not None:
        jobs.stop(address, str(flow_run.id))


@flow(
    name="on-demand",
    flow_run_name="{training.recipe}",
    on_cancellation=[stop_training],
    on_crashed=[stop_training],
)
def on_demand_flow(training: Training) -> Any:
    """Shard, train, score and register a recipe; returns the run's folder and its registration.

    Ends as Failed, before anything is written, where a setting, the data or the workers do not fit.
    """
    try:
        config = recipes.with_absolute_paths(training.config())
        data = precheck(config)
    except UserError as error:
        return refused(error)
    with sharding.planned(config, data):
        return run_flow.fn(config, None, training.minutes)
