"""The one configuration tree, read from YAML recipes in `configs/`.

Every key is checked: an unknown one is an error, never ignored. A field marked `harmless` may
differ between a run and its resumption; any other difference is refused (see `checkpoint.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gan_train.families.catalogue import FamilyConfig

Resize = Literal["box", "bilinear", "bicubic", "lanczos"]
Metric = Literal["frechet", "kid", "precision_recall", "conditional", "diversity", "path_length"]
PathLength = Literal["w_end", "w_full", "z_end", "z_full"]


class Strict(BaseModel):
    """A frozen node of the tree that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def harmless(default: Any, description: str, **limits: Any) -> Any:
    """A field that may change on resume without changing what is trained."""
    return Field(
        default, description=description, json_schema_extra={"resume": "harmless"}, **limits
    )


class SecondSource(Strict):
    """Domain B of a translation; the first source is domain A."""

    source: str | None = harmless(None, "A folder, zip or tar of images; empty: the first source.")
    only_classes: tuple[str, ...] = Field(
        (), description="Keep these classes alone; empty keeps all."
    )
    pairs: Literal["none", "names", "training"] = Field(
        "none",
        description="`names`: files of one name in both sources are pairs; those held out are the "
        "truth that scores compare with, the rest is split so that training shows no pair. "
        "`training`: pairs are shown as pairs.",
    )


class DataConfig(Strict):
    """Where the images come from, what becomes of them, and in which order they are read."""

    source: str = harmless(..., "A folder, zip or tar of images.")
    resolution: int = Field(
        ge=4, le=1024, description="Side of the stored square images, in pixels."
    )
    colour: Literal["grey", "rgb"] = "rgb"
    classes: Literal["folder", "none"] = Field(
        "none", description="`folder`: the name of an image's folder is its class."
    )
    only_classes: tuple[str, ...] = Field(
        (), description="Keep these classes alone; empty keeps all."
    )
    resize: Resize = "lanczos"
    crop: Literal["centre", "pad", "stretch"] = Field(
        "centre",
        description="How a picture becomes square: the middle square, letterboxed, or distorted.",
    )
    background: Literal["black", "white"] = Field(
        "black", description="What transparent pixels and letterbox bars show."
    )
    second: SecondSource | None = Field(
        None, description="A second, unpaired set of images, for translation."
    )
    held_out: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the images that training never sees: super-resolution and "
        "translation are scored on it.",
    )
    licence: str | None = harmless(None, "Licence of the images, told in the model card.")
    shard_images: int = Field(1000, ge=1, description="Images per tar.")
    max_pixels: int = Field(100_000_000, ge=1, description="Larger pictures are quarantined.")
    max_bad_fraction: float = Field(
        0.01, ge=0, le=1, description="Sharding fails when more than this share is quarantined."
    )
    verify_days: float = harmless(
        30.0,
        "Files that were read or verified within this many days, and whose size, times and inode "
        "are unchanged, are not read again. 0 reads everything each time, as `gan-train shard "
        "--verify` does once.",
        ge=0,
    )
    lanes: int = Field(
        48,
        ge=1,
        description="Parallel reading positions per epoch; the number of workers must divide it.",
    )
    block: int = Field(64, ge=1, description="Images per lane that are shuffled together.")
    mirror: bool = Field(False, description="Show half of the images mirrored left to right.")
    loader_workers: int = harmless(0, "Decoding processes per training worker.", ge=0)
    cache_mb: int = harmless(
        512, "Keep decoded images in memory when the whole data set fits, in MiB.", ge=0
    )

    @model_validator(mode="after")
    def _parts_have_no_classes(self) -> DataConfig:
        if self.classes == "folder" and (self.second is not None or self.held_out):
            raise ValueError(
                "data.classes is `folder`: with data.second or data.held_out, allowed: none "
                "(data.only_classes still chooses folders)"
            )
        return self


class TrainConfig(Strict):
    """How any family is trained."""

    batch: int = Field(64, ge=1, description="Global batch, over all workers.")
    accumulate: int = Field(1, ge=1, description="Micro-batches per optimizer step.")
    total_kimg: float | None = harmless(
        None, "Thousands of real images shown; empty follows the family's schedule.", gt=0
    )
    start_from: Path | None = Field(
        None,
        description="Folder of a checkpoint or import whose networks a new run begins with; its "
        "averaged ones last only where `ema_ramp` is empty.",
    )
    ema_kimg: float = Field(10.0, ge=0, description="Half-life of the averaged weights, in kimg.")
    ema_ramp: float | None = Field(
        0.05, gt=0, description="Half-life is at most this fraction of the images seen so far."
    )
    precision: Literal["float32", "bf16", "float64"] = Field(
        "float32", description="bf16: mixed, weights stay float32. float64: for verification."
    )
    channels_last: bool = Field(False, description="Memory layout of images and filters.")
    tick_kimg: float = harmless(4.0, "Curves are logged this often.", gt=0)
    sample_kimg: float = harmless(20.0, "A grid of fixed latents is drawn this often.", gt=0)
    checkpoint_kimg: float = harmless(
        50.0, "A checkpoint is written and scored this often, and at every milestone.", gt=0
    )
    keep_checkpoints: int = harmless(3, "Newest checkpoints kept; the best one always is.", ge=1)
    threads: int | None = harmless(
        None, "CPU threads per worker; empty: its share of the cores.", ge=1
    )
    allow_changed: tuple[str, ...] = harmless(
        (), "Keys declared harmless for this resumption, such as `data.mirror`."
    )


class EvaluateConfig(Strict):
    """How checkpoints are scored. Everything here is stored with the score."""

    extractor: Literal["efficientnet_lite0", "inception_v3_2015_12_05"] = harmless(
        "efficientnet_lite0", "The feature network. Only Inception gives a number called FID."
    )
    weights: str | None = harmless(None, "Path or URL of the extractor's weights; empty: bundled.")
    sha256: str | None = harmless(None, "Expected digest of the weights.", pattern="^[0-9a-f]{64}$")
    images: int = harmless(2000, "N: images on each side of the comparison.", ge=4)
    metrics: tuple[Metric, ...] = harmless(
        ("frechet", "kid", "precision_recall", "conditional", "diversity"),
        "What is computed. `conditional` adds nothing without classes.",
    )
    batch: int = harmless(50, "Images per forward pass of the extractor.", ge=1)
    pictures: str | None = harmless(
        None,
        "Super-resolution: folder, zip or tar of whole test pictures; those in folders `HR` may "
        "have small partners in `LRx2` or `LRx4` beside; empty: `data.held_out` images.",
    )
    picture_sets: tuple[str, ...] = harmless(
        (), "Score these folders of `pictures` alone; empty takes all."
    )
    perceptual: Literal["efficientnet_lite0", "lpips_vgg16"] = harmless(
        "efficientnet_lite0", "What path lengths and the distance to a known truth are measured in."
    )
    perceptual_weights: str | None = harmless(
        None, "lpips_vgg16: path or URL of `vgg16.pt` as published with stylegan2-ada-pytorch."
    )
    perceptual_sha256: str | None = harmless(
        None, "lpips_vgg16: expected digest of that file.", pattern="^[0-9a-f]{64}$"
    )
    path_lengths: tuple[PathLength, ...] = harmless(
        ("w_end",),
        "Which paths: between styles w or latents z; at their ends or all along.",
        min_length=1,
    )
    path_length_images: int = harmless(2000, "Paths measured; two images each.", ge=2)


class RegistryConfig(Strict):
    """MLflow: where runs are tracked and under which name the best generator is registered."""

    tracking_uri: str | None = harmless(
        None, "Tracking server; empty: SQLite in the workspace, no server to start."
    )
    experiment: str = harmless("gan-train", "Experiment that the run belongs to.")
    model: str | None = harmless(
        None, "Registered model; empty: recipe, beginning with the family.", pattern=r"^[^/:'\"]+$"
    )


class ClusterConfig(Strict):
    """Ray: how many workers train, and where."""

    address: str | None = harmless(
        None, "Ray cluster to join (`auto`, `host:6379`); empty: RAY_ADDRESS if set, else local."
    )
    jobs: str | None = harmless(
        None,
        "Ray dashboard (`http://host:8265`) to submit the training to as a job; empty: none.",
        pattern="^https?://",
    )
    workers: int = harmless(1, "Data-parallel training workers.", ge=1)
    gpu: Literal["auto", "yes", "no"] = harmless(
        "auto", "One GPU per worker when there are enough."
    )
    cpus_per_worker: float = harmless(1, "CPUs reserved per worker.", gt=0)
    max_failures: int = harmless(3, "Restarts from the last checkpoint after a lost worker.", ge=0)
    timeout_s: float = harmless(1800, "A collective that waits longer fails.", gt=0)


class FlowConfig(Strict):
    """Prefect: embedded by default."""

    server: str | None = harmless(None, "API URL of a Prefect server; empty: embedded, temporary.")


class Config(Strict):
    """A whole run: shard, train, score, register."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the recipe.")
    seed: int = Field(0, ge=0)
    workspace: Path = harmless(Path("runs"), "Folder for shards, runs, statistics and databases.")
    data: DataConfig
    family: FamilyConfig
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    registry: RegistryConfig = RegistryConfig()
    cluster: ClusterConfig = ClusterConfig()
    flow: FlowConfig = FlowConfig()

    @model_validator(mode="after")
    def _power_of_two(self) -> Config:
        if self.data.resolution & (self.data.resolution - 1):
            raise ValueError(
                f"data.resolution is {self.data.resolution}; allowed: a power of two from 4 to 1024"
            )
        return self
