"""The keys of a recipe in `configs/`: what each means, which values are allowed, and its default.

An unknown key is an error. A field made by `harmless` may differ between a run and its resumption;
any other difference is refused (see `runs/checkpoint.py`). Users read the descriptions in error
messages, in Prefect's form and in `gan-train config --schema`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_serializer, model_validator
from pydantic.json_schema import SkipJsonSchema

from gan_train.errors import UserError
from gan_train.families.catalogue import FamilyConfig
from gan_train.files.store import is_url, local_copy, path_of
from gan_train.sections import DataConfig as DataConfig
from gan_train.sections import EvaluateConfig as EvaluateConfig
from gan_train.sections import Resize as Resize
from gan_train.sections import TrainConfig as TrainConfig
from gan_train.settings import MOST, Settings, harmless, possible_path

ADDRESS = r"^https?://[^\s/]+\S*$"
"""The pattern of a server's address."""


class RegistryConfig(Settings):
    """Where MLflow tracks runs, and under which name the best generator is registered."""

    tracking_uri: str | None = harmless(
        None,
        "The address of MLflow's tracking server. Empty means the one that MLFLOW_TRACKING_URI "
        "names, or that `gan-train up` has started; otherwise a SQLite file in the workspace, "
        "which needs no server.",
    )
    experiment: str = harmless(
        "gan-train",
        "The experiment in MLflow that runs belong to.",
        pattern=r"\S",
        max_length=200,
    )
    model: str | None = harmless(
        None,
        "The name of the registered model. Empty means the recipe's name, with the family's "
        "name before it unless it begins so.",
        pattern=r"""^[^/:'"%\s.]([^/:'"%\n\t]*[^/:'"%\s])?$""",
        max_length=200,
    )
    partly_grown: bool = harmless(
        False, "Whether a generator may be registered that has not grown to data.resolution yet."
    )
    seed_deviation: float | None = harmless(
        None,
        "The standard deviation of the deciding score between trainings that differ in their seed "
        "alone. Empty takes it from the registered versions, or assumes it. With 0, only the "
        "samples' errors count.",
        ge=0,
        le=1e9,
    )


class ClusterConfig(Settings):
    """How many workers train, and on which Ray cluster."""

    address: str | None = harmless(
        None,
        "The Ray cluster to join, such as `auto` or `host:6379`. Empty means the one that "
        "RAY_ADDRESS names, or that `gan-train up` has started; otherwise the command starts Ray "
        "on this machine and ends it.",
    )
    jobs: str | None = harmless(
        None,
        "The Ray dashboard, such as `http://host:8265`, to which the training is submitted as a "
        "job. Empty trains without a job.",
        pattern=ADDRESS,
    )
    workers: int = harmless(
        1,
        "The number of workers, which train together on their shares of each batch. `2-8` means: "
        "as many as the cluster has room for, and sets `max_workers` too.",
        ge=1,
        le=10_000,
    )
    max_workers: int | None = harmless(
        None,
        "A training grows and shrinks with the cluster's room, from `workers` up to this number. "
        "Numbers that cannot share a batch evenly are skipped.",
        ge=1,
        le=10_000,
    )
    gpu: Literal["auto", "yes", "no"] = harmless(
        "auto",
        "Whether every worker has a GPU. With `auto`, every worker has one if there are enough.",
    )
    accelerator_type: str | None = harmless(
        None, "The type of every worker's GPU, in Ray's words, such as `A100`. Empty takes any."
    )
    placement: Literal["pack", "spread"] = harmless(
        "pack", "Whether the workers are put on as few nodes as possible, or spread over many."
    )
    cpus_per_worker: float = harmless(
        1, "The number of CPUs that Ray reserves for each worker.", gt=0, le=10_000
    )
    max_failures: int = harmless(
        3, "How often a run that lost a worker goes on from its last checkpoint.", ge=0, le=MOST
    )
    timeout_s: float = harmless(
        1800,
        "After so many seconds a worker no longer waits for the others, and the run goes on from "
        "its last checkpoint. A worker whose process does not answer at all is replaced after a "
        "minute, or after these seconds if they are fewer.",
        gt=0,
        le=1e7,
    )

    @model_validator(mode="before")
    @classmethod
    def _from_to(cls, given: Any) -> Any:
        workers = given.get("workers") if isinstance(given, dict) else None
        bounds = (
            re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})", workers)
            if isinstance(workers, str)
            else None
        )
        if bounds is None:
            return given
        return given | {"workers": int(bounds[1]), "max_workers": int(bounds[2])}

    @model_validator(mode="after")
    def _most_is_most(self) -> ClusterConfig:
        if self.max_workers is not None and self.max_workers < self.workers:
            raise ValueError(
                f"cluster.max_workers is {self.max_workers}; allowed: {self.workers} and more"
            )
        return self


class FlowConfig(Settings):
    """Where Prefect keeps the state of its flows."""

    server: str | None = harmless(
        None,
        "The API address of a Prefect server. Empty means the one that PREFECT_API_URL names, or "
        "that `gan-train up` has started; otherwise the command starts a server and ends it.",
        pattern=ADDRESS,
    )


class Config(Settings):
    """A whole run: what is sharded, trained, scored and registered."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="The name of the recipe.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=1 << 63,
        description="Everything that is random in a run is a function of this number.",
    )
    workspace: Path = harmless(
        Path("runs"),
        "The folder for shards, runs, statistics and databases. An address in a bucket, such as "
        "`s3://bucket/team`, `gs://...` or `az://...`, keeps shards and runs there, and each "
        "machine has a copy of what it needs below GAN_TRAIN_CACHE. Then nodes share no folder.",
    )
    store: SkipJsonSchema[str | None] = Field(
        None, exclude=True, description="The workspace's address in a bucket; it follows from it."
    )
    data: DataConfig
    family: FamilyConfig
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    registry: RegistryConfig = RegistryConfig()
    cluster: ClusterConfig = ClusterConfig()
    flow: FlowConfig = FlowConfig()

    @model_validator(mode="before")
    @classmethod
    def _workspace_in_a_bucket(cls, given: Any) -> Any:
        """A workspace in a bucket becomes `store`, and `workspace` this machine's copy of it."""
        if not isinstance(given, dict):
            return given
        if given.get("store") is not None:
            raise ValueError("store is not set by itself; give its address as workspace")
        place = given.get("workspace")
        if not isinstance(place, str):
            return given
        try:
            possible_path(place)
        except ValueError as error:
            raise ValueError(f"workspace: {error}") from error
        if not is_url(place):
            return given
        try:
            path = path_of(place)
        except UserError as error:
            raise ValueError(f"workspace: {error}") from error
        if path is not None:
            return given | {"workspace": path}
        return given | {"workspace": local_copy(place), "store": place.rstrip("/")}

    @field_serializer("workspace")
    def _place(self, workspace: Path) -> str:
        """The address where there is one: each machine finds its own copy."""
        return self.store or str(workspace)

    @model_validator(mode="after")
    def _all_workers_go_back(self) -> Config:
        several = self.cluster.workers > 1 or self.cluster.max_workers is not None
        if self.train.on_sickness == "roll_back" and self.store is not None and several:
            raise ValueError(
                "train.on_sickness is roll_back: with several workers and a workspace in a bucket, "
                "allowed: warn or stop (only the first worker has earlier checkpoints there)"
            )
        return self

    @model_validator(mode="after")
    def _jobs_need_a_folder(self) -> Config:
        if self.cluster.jobs is not None and self.store is not None:
            raise ValueError(
                f"cluster.jobs is {self.cluster.jobs}: the workspace must be a folder. With one in "
                "a bucket, leave it empty and submit the whole run: "
                f"gan-train submit RECIPE --address {self.cluster.jobs}"
            )
        return self
