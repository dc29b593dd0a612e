"""The flow `compare-again`: a comparison from a short form, for a schedule.

A comparison that is done is not done again (see `flow.py`). So every recipe gets a seed that
depends on its own and on the data: new images mean a new comparison, and no new images the report
of the last one.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from pydantic import BaseModel, ConfigDict, Field

from gan_train import recipes
from gan_train.errors import UserError
from gan_train.rng import derive
from pipelines.comparison.flow import compare_flow
from pipelines.comparison.plan import Comparison, planned
from pipelines.flows.on_demand import Setting, offer_recipes, refused
from pipelines.flows.plan import growing, precheck


class Contest(BaseModel):
    """Which recipes to compare, and for how long to train each."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipes: list[str] = Field(
        min_length=2,
        description="The names of recipes, as `gan-train recipes` lists them. All get the data and "
        "the protocol of scoring of the first.",
        json_schema_extra=offer_recipes,
    )
    minutes: float = Field(30, gt=0, description="Minutes of training for each recipe.")
    seeds: int = Field(
        1,
        ge=1,
        description="Trainings of each recipe, which differ in their seed alone. Several tell "
        "which recipe is better; one seldom does.",
    )
    workers: int | None = Field(
        None, ge=1, description="The number of workers for each recipe. Empty means its own."
    )
    settings: list[Setting] = Field(
        [],
        title="Other settings",
        description="Settings for every recipe, each as `--set` takes it: `evaluate.images=1000`.",
    )

    def comparison(self) -> Comparison:
        """The comparison on the data of now. Raises UserError, as `gan-train compare` does."""
        comparison = planned(
            self.recipes,
            self.settings,
            minutes=self.minutes,
            workers=self.workers,
            seeds=self.seeds,
        )
        configs = [growing(config) for config in comparison.configs]
        data = precheck(configs[0])
        configs = [
            recipes.change(
                config, {"seed": derive(config.seed, "comparison", data.fingerprint) % 2**31}
            )
            for config in configs
        ]
        return comparison.model_copy(update={"configs": tuple(configs)})


@flow(name="compare-again", flow_run_name="compare-again")
def compare_again_flow(contest: Contest) -> Any:
    """Train every recipe of the contest on the data of now, and write the report; returns its
    facts. Ends as Failed, before anything is written, where a recipe cannot be trained so."""
    try:
        comparison = contest.comparison()
    except UserError as error:
        return refused(error)
    return compare_flow.fn(comparison)
