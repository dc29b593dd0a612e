"""The keys of a recipe in `configs/`: what each means, which values are allowed, and its default.

An unknown key is an error. A field made by `harmless` may differ between a run and its resumption;
any other difference is refused (see `runs/checkpoint.py`). Users read the descriptions in error
messages, in Prefect's form and in `gan-train config --schema`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_serializer, model_validator
from pydantic.json_schema import SkipJsonSchema

from gan_train.errors import UserError
from gan_train.families.catalogue import FamilyConfig
from gan_train.files.store import is_url, local_copy, path_of

Resize = Literal["box", "bilinear", "bicubic", "lanczos"]
Metric = Literal["frechet", "kid", "precision_recall", "conditional", "diversity", "path_length"]
PathLength = Literal["w_end", "w_full", "z_end", "z_full"]


class Strict(BaseModel):
    """A group of keys: it refuses unknown keys and cannot be changed once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def harmless(default: Any, description: str, **limits: Any) -> Any:
    """A field that may change on resume without changing what is trained."""
    return Field(
        default, description=description, json_schema_extra={"resume": "harmless"}, **limits
    )


class SecondSource(Strict):
    """Where the images of domain B of a translation come from; the first source is domain A."""

    source: str | None = harmless(
        None, "A folder, zip or tar of images. Empty means the first source."
    )
    only_classes: tuple[str, ...] = Field(
        (), description="Only the images of these classes are kept. Empty keeps all of them."
    )
    pairs: Literal["none", "names", "training"] = Field(
        "none",
        description="Whether images of the two sources belong together. With `names`, files of one "
        "name are a pair: held-out pairs are the truth that scores compare with, and the other "
        "images are split so that training never shows both of a pair. With `training`, every step "
        "shows whole pairs.",
    )


class DataConfig(Strict):
    """Where the images come from, how they are stored, and in which order they are read."""

    source: str = harmless(
        ...,
        "A folder, zip or tar of images: a path, or an address in a bucket such as "
        "`s3://bucket/photos`.",
    )
    resolution: int = Field(
        ge=4, le=1024, description="The side of the stored square images, in pixels."
    )
    colour: Literal["grey", "rgb"] = Field(
        "rgb", description="Whether images are stored with one channel or with three."
    )
    classes: Literal["folder", "none"] = Field(
        "none",
        description="With `folder`, the name of an image's folder is its class. With `none`, the "
        "images have no classes.",
    )
    only_classes: tuple[str, ...] = Field(
        (), description="Only the images of these classes are kept. Empty keeps all of them."
    )
    resize: Resize = Field(
        "lanczos", description="The filter by which an image gets the stored resolution."
    )
    crop: Literal["centre", "pad", "stretch"] = Field(
        "centre",
        description="How an image becomes square: its middle square is cut out, bars are added "
        "(`pad`), or it is distorted (`stretch`).",
    )
    background: Literal["black", "white"] = Field(
        "black", description="The colour of transparent pixels and of the bars of `crop: pad`."
    )
    second: SecondSource | None = Field(
        None, description="A second set of images, for families that translate between two."
    )
    held_out: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="The share of the images that training never sees, on which super-resolution "
        "and translation are scored.",
    )
    licence: str | None = harmless(None, "The licence of the images, which the model card tells.")
    shard_images: int = Field(1000, ge=1, description="The number of images in one shard.")
    max_pixels: int = Field(
        100_000_000, ge=1, description="An image with more pixels than this is left out."
    )
    max_bad_fraction: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Sharding fails when more than this share of the files had to be left out.",
    )
    grow: bool = harmless(
        False,
        "Whether the stored set grows: images that are new in the source get shards of their own, "
        "and old shards stay. Where images are gone or have changed, all are sharded anew.",
    )
    verify_days: float = harmless(
        30.0,
        "For this many days, files of the source and shards are not read again just to see whether "
        "they are whole, as long as their size, times and inode are unchanged. 0 reads everything "
        "every time, as `gan-train shard --verify` does once.",
        ge=0,
    )
    lanes: int = Field(
        48,
        ge=1,
        description="The number of places at which an epoch is read side by side. The number of "
        "workers must divide it.",
    )
    block: int = Field(
        64, ge=1, description="The number of images that are shuffled together in each lane."
    )
    mirror: bool = Field(
        False, description="Whether half of the images are shown mirrored left to right."
    )
    loader_workers: int = harmless(
        0, "The number of processes that decode images for each training worker.", ge=0
    )
    node_cache_gb: float = harmless(
        50.0,
        "With a workspace in a bucket, each machine keeps no more shards of a data set than this, "
        "in GB. With less than some shards for each lane, shards are fetched again and again.",
        gt=0,
    )
    cache_mb: int = harmless(
        512,
        "Decoded images stay in memory when the whole data set takes no more than this, in MiB.",
        ge=0,
    )

    @model_validator(mode="after")
    def _is_possible(self) -> DataConfig:
        if self.resolution & (self.resolution - 1):
            raise ValueError(
                f"data.resolution is {self.resolution}; allowed: a power of two from 4 to 1024"
            )
        if self.classes == "folder" and (self.second is not None or self.held_out):
            raise ValueError(
                "data.classes is `folder`: with data.second or data.held_out, allowed: none "
                "(data.only_classes still chooses folders)"
            )
        if self.grow and self.second is not None:
            raise ValueError("data.grow is true: with data.second, allowed: false")
        return self


class TrainConfig(Strict):
    """How any family is trained."""

    batch: int = Field(
        64, ge=1, description="The global batch: the images of a step over all workers."
    )
    accumulate: int = Field(
        1, ge=1, description="The number of micro-batches that make one optimizer step."
    )
    total_kimg: float | None = harmless(
        None,
        "The length of training in thousands of real images shown. Empty follows the family's "
        "schedule.",
        gt=0,
    )
    fitted_minutes: float | None = harmless(
        None,
        "The minutes to which `--minutes` has fitted the schedule. It tells `--resume` that the "
        "run's own schedule holds, and not that of the recipe.",
        gt=0,
    )
    start_from: str | None = Field(
        None,
        description="The folder of a checkpoint or of an import, with whose networks a new run "
        "begins: a path, or an address in a bucket. Its average weights are kept only where "
        "`ema_ramp` is empty.",
    )
    ema_kimg: float = Field(
        10.0, ge=0, description="The half-life of the average weights, in thousands of images."
    )
    ema_ramp: float | None = Field(
        0.05,
        gt=0,
        description="The half-life is at most this fraction of the images seen so far. Empty sets "
        "no such limit.",
    )
    precision: Literal["auto", "bf16", "float32", "float64"] = Field(
        "auto",
        description="The format of numbers: `bf16` computes in bfloat16 with weights in float32. "
        "`auto` takes bf16 where all workers compute faster in it, else float32; a resumed run "
        "keeps what it began with. `float64` is for verification.",
    )
    reduce_precision: Literal["full", "bf16"] = Field(
        "full",
        description="The format in which gradients travel between workers: their own, or rounded "
        "to bfloat16, which halves the messages. Sums are taken in float32 or better.",
    )
    channels_last: bool = Field(
        False, description="Whether images and filters lie in memory with their channels last."
    )
    tick_kimg: float = harmless(4.0, "Losses are logged every so many thousands of images.", gt=0)
    sample_kimg: float = harmless(
        20.0, "A grid of samples is drawn every so many thousands of images.", gt=0
    )
    checkpoint_kimg: float = harmless(
        50.0,
        "A checkpoint is written and scored every so many thousands of images, and at every "
        "milestone of the schedule.",
        gt=0,
    )
    keep_checkpoints: int = harmless(
        3, "The number of newest checkpoints that are kept. The best one is always kept.", ge=1
    )
    profile_steps: int = harmless(
        0,
        "The number of steps that are profiled, after some to warm up. The trace is in the run's "
        "folder `profile`, and ui.perfetto.dev opens it. 0 means none.",
        ge=0,
    )
    threads: int | None = harmless(
        None, "The number of CPU threads of each worker. Empty means its share of the cores.", ge=1
    )
    allow_changed: tuple[str, ...] = harmless(
        (), "Keys that may differ in this one resumption, such as `data.mirror`."
    )


class EvaluateConfig(Strict):
    """How checkpoints are scored: the protocol, which is stored with every score."""

    extractor: Literal["efficientnet_lite0", "inception_v3_2015_12_05"] = harmless(
        "efficientnet_lite0",
        "The network whose features are compared. Only Inception gives the number called FID.",
    )
    weights: str | None = harmless(
        None, "The path or URL of the extractor's weights. Empty takes the packaged ones."
    )
    sha256: str | None = harmless(
        None, "The SHA-256 that the extractor's weights must have.", pattern="^[0-9a-f]{64}$"
    )
    images: int = harmless(2000, "The number of images on each side of the comparison.", ge=4)
    metrics: tuple[Metric, ...] = harmless(
        ("frechet", "kid", "precision_recall", "conditional", "diversity"),
        "The scores that are computed. `conditional` needs data with classes, and is left out "
        "without.",
    )
    batch: int = harmless(50, "The number of images in each forward pass of the extractor.", ge=1)
    pictures: str | None = harmless(
        None,
        "A folder, zip or tar of whole pictures on which super-resolution is scored. A picture in "
        "a folder `HR` may have its small partner in a folder `LRx2` or `LRx4` beside. Empty means "
        "the held-out images of the data set.",
    )
    picture_sets: tuple[str, ...] = harmless(
        (), "The folders of `pictures` that are scored. Empty takes all of them."
    )
    perceptual: Literal["efficientnet_lite0", "lpips_vgg16"] = harmless(
        "efficientnet_lite0",
        "The network that measures path lengths and the distance to a known truth.",
    )
    perceptual_weights: str | None = harmless(
        None,
        "For `lpips_vgg16`: the path or URL of `vgg16.pt` as published with stylegan2-ada-pytorch.",
    )
    perceptual_sha256: str | None = harmless(
        None, "For `lpips_vgg16`: the SHA-256 that `vgg16.pt` must have.", pattern="^[0-9a-f]{64}$"
    )
    path_lengths: tuple[PathLength, ...] = harmless(
        ("w_end",),
        "The paths that are measured: between styles (w) or latents (z), and at their ends (end) "
        "or all along (full).",
        min_length=1,
    )
    path_length_images: int = harmless(
        2000, "The number of paths that are measured, with two images each.", ge=2
    )


class RegistryConfig(Strict):
    """Where MLflow tracks runs, and under which name the best generator is registered."""

    tracking_uri: str | None = harmless(
        None,
        "The address of MLflow's tracking server. Empty means that of MLFLOW_TRACKING_URI or of "
        "`gan-train up`; otherwise a SQLite file in the workspace, which needs no server.",
    )
    experiment: str = harmless("gan-train", "The experiment in MLflow that runs belong to.")
    model: str | None = harmless(
        None,
        "The registered model's name. Empty means the recipe's, which begins with the family's.",
        pattern=r"^[^/:'\"]+$",
    )
    partly_grown: bool = harmless(
        False, "Whether a generator may be registered that has not grown to data.resolution yet."
    )


class ClusterConfig(Strict):
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
        pattern="^https?://",
    )
    workers: int = harmless(
        1,
        "The number of workers, which train together on their shares of each batch. `2-8` means: "
        "as many as the cluster has room for, and sets `max_workers` too.",
        ge=1,
    )
    max_workers: int | None = harmless(
        None,
        "A training grows and shrinks with the cluster's room, from `workers` up to this number. "
        "Numbers that cannot share a batch evenly are skipped.",
        ge=1,
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
        1, "The number of CPUs that Ray reserves for each worker.", gt=0
    )
    max_failures: int = harmless(
        3, "How often a run that lost a worker goes on from its last checkpoint.", ge=0
    )
    timeout_s: float = harmless(
        1800, "After so many seconds a worker no longer waits for the others, and fails.", gt=0
    )

    @model_validator(mode="before")
    @classmethod
    def _from_to(cls, given: Any) -> Any:
        workers = given.get("workers") if isinstance(given, dict) else None
        bounds = re.fullmatch(r"(\d+)-(\d+)", workers) if isinstance(workers, str) else None
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


class FlowConfig(Strict):
    """Where Prefect keeps the state of its flows."""

    server: str | None = harmless(
        None,
        "The API address of a Prefect server. Empty means the one that PREFECT_API_URL names, or "
        "that `gan-train up` has started; otherwise the command starts a server and ends it.",
    )


class Config(Strict):
    """A whole run: what is sharded, trained, scored and registered."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="The name of the recipe."
    )
    seed: int = Field(
        0, ge=0, description="Everything that is random in a run is a function of this number."
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
        if not isinstance(place, str) or not is_url(place):
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
    def _some_need_a_folder(self) -> Config:
        if self.data.grow and self.store is not None:
            raise ValueError(
                "data.grow is true: the workspace must be a folder (data.source may be in a bucket)"
            )
        if self.cluster.jobs is not None and self.store is not None:
            raise ValueError(
                f"cluster.jobs is {self.cluster.jobs}: the workspace must be a folder. With one in "
                "a bucket, leave it empty and submit the whole run: "
                f"gan-train submit RECIPE --address {self.cluster.jobs}"
            )
        return self
