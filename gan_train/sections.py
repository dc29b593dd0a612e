"""The groups of a recipe that say what is trained: data, training, scoring.

The whole tree is in `config.py`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gan_train.settings import MOST, MOST_KIMG, Count, PathText, Settings, harmless

Resize = Literal["box", "bilinear", "bicubic", "lanczos"]
Metric = Literal[
    "frechet",
    "kid",
    "precision_recall",
    "density_coverage",
    "memorisation",
    "conditional",
    "diversity",
    "sliced_wasserstein",
    "gan_train",
    "path_length",
]
LEAST_KIMG = 0.001
"""One image, in thousands."""
PathLength = Literal["w_end", "w_full", "z_end", "z_full"]


class SecondSource(Settings):
    """Where the images of domain B of a translation come from; the first source is domain A."""

    source: PathText | None = harmless(
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


class DataConfig(Settings):
    """Where the images come from, how they are stored, and in which order they are read."""

    source: PathText = harmless(
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
    shard_images: int = Field(1000, ge=1, le=MOST, description="The number of images in one shard.")
    max_pixels: int = Field(
        100_000_000, ge=1, le=10**10, description="An image with more pixels than this is left out."
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
        le=1e6,
    )
    lanes: int = Field(
        48,
        ge=1,
        le=65_536,
        description="The number of places at which an epoch is read side by side. The number of "
        "workers must divide it.",
    )
    block: int = Field(
        64,
        ge=1,
        le=MOST,
        description="The number of images that are shuffled together in each lane.",
    )
    mirror: bool = Field(
        False, description="Whether half of the images are shown mirrored left to right."
    )
    loader_workers: int = harmless(
        0, "The number of processes that decode images for each training worker.", ge=0, le=1024
    )
    node_cache_gb: float = harmless(
        50.0,
        "With a workspace in a bucket, each machine keeps no more shards of a data set than this, "
        "in GB. With less than some shards for each lane, shards are fetched again and again.",
        gt=0,
        le=1e9,
    )
    cache_mb: int = harmless(
        512,
        "Decoded images stay in memory when the whole data set takes no more than this, in MiB.",
        ge=0,
        le=MOST * 1024,
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


class TrainConfig(Settings):
    """How any family is trained."""

    batch: Count = Field(64, description="The global batch: the images of a step over all workers.")
    accumulate: Count = Field(
        1, description="The number of micro-batches that make one optimizer step."
    )
    total_kimg: float | None = harmless(
        None,
        "The length of training in thousands of real images shown. Empty follows the family's "
        "schedule.",
        gt=0,
        le=MOST_KIMG,
    )
    fitted_minutes: float | None = harmless(
        None,
        "The minutes to which `--minutes` has fitted the schedule. It tells `--resume` that the "
        "run's own schedule holds, and not that of the recipe.",
        gt=0,
        le=1e7,
    )
    start_from: PathText | None = Field(
        None,
        description="The folder of a checkpoint or of an import, with whose networks a new run "
        "begins: a path, or an address in a bucket. Its average weights are kept only where "
        "`ema_ramp` is empty.",
    )
    ema_kimg: float = Field(
        10.0,
        ge=0,
        le=MOST_KIMG,
        description="The half-life of the average weights, in thousands of images.",
    )
    ema_ramp: float | None = Field(
        0.05,
        gt=0,
        le=1e6,
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
    tick_kimg: float = harmless(
        4.0, "Losses are logged every so many thousands of images.", ge=LEAST_KIMG, le=MOST_KIMG
    )
    sample_kimg: float = harmless(
        20.0,
        "A grid of samples is drawn every so many thousands of images.",
        ge=LEAST_KIMG,
        le=MOST_KIMG,
    )
    checkpoint_kimg: float = harmless(
        50.0,
        "A checkpoint is written and scored every so many thousands of images, and at every "
        "milestone of the schedule.",
        ge=LEAST_KIMG,
        le=MOST_KIMG,
    )
    keep_checkpoints: int = harmless(
        3,
        "The number of newest checkpoints that are kept. The best one is always kept.",
        ge=1,
        le=MOST,
    )
    on_sickness: Literal["warn", "stop", "roll_back"] = harmless(
        "warn",
        "What follows when a training shows signs of a disease that spoils its generator: a "
        "warning, the end of the training, or the last checkpoint before the disease, from which "
        "it goes on with other data. docs/doctor.md lists the diseases.",
    )
    roll_backs: int = harmless(
        3, "With `on_sickness: roll_back`, a run is rolled back at most so often.", ge=1, le=16
    )
    patience_kimg: float | None = harmless(
        None,
        "Training ends when the deciding score has not got better, by more than its interval, for "
        "so many thousands of images. Empty trains to the end of the schedule.",
        ge=LEAST_KIMG,
        le=MOST_KIMG,
    )
    profile_steps: int = harmless(
        0,
        "The number of steps that are profiled, after some to warm up. The trace is in the run's "
        "folder `profile`, and ui.perfetto.dev opens it. 0 means none.",
        ge=0,
        le=10_000,
    )
    threads: int | None = harmless(
        None,
        "The number of CPU threads of each worker. Empty means its share of the cores.",
        ge=1,
        le=4096,
    )
    allow_changed: tuple[str, ...] = harmless(
        (), "Keys that may differ in this one resumption, such as `data.mirror`."
    )


class EvaluateConfig(Settings):
    """How checkpoints are scored: the protocol, which is stored with every score."""

    extractor: Literal["efficientnet_lite0", "inception_v3_2015_12_05", "dinov2", "clip"] = (
        harmless(
            "efficientnet_lite0",
            "The network whose features are compared. Only Inception gives the number called FID. "
            "`dinov2` and `clip` need `weights`, a `model.safetensors` from Hugging Face, and "
            "`sha256`.",
        )
    )
    weights: PathText | None = harmless(
        None, "The path or URL of the extractor's weights. Empty takes the packaged ones."
    )
    sha256: str | None = harmless(
        None, "The SHA-256 that the extractor's weights must have.", pattern="^[0-9a-f]{64}$"
    )
    images: int = harmless(
        2000, "The number of images on each side of the comparison.", ge=4, le=10_000_000
    )
    metrics: tuple[Metric, ...] = harmless(
        (
            *("frechet", "kid", "precision_recall", "density_coverage", "memorisation"),
            *("conditional", "diversity"),
        ),
        "The scores that are computed. `conditional` and `gan_train` need data with classes, and "
        "are left out without.",
    )
    latents: int = harmless(
        0,
        "The sequence of latents that is scored. Checkpoints are chosen by 0, which depends on the "
        "seed. A registered version is scored anew on 1, which is the same for all seeds.",
        ge=0,
        le=MOST,
    )
    batch: int = harmless(
        50, "The number of images in each forward pass of the extractor.", ge=1, le=65_536
    )
    pictures: PathText | None = harmless(
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
    perceptual_weights: PathText | None = harmless(
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
        2000, "The number of paths that are measured, with two images each.", ge=2, le=10_000_000
    )
