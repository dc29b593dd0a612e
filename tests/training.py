"""Helpers for tests that really train: tiny ProGAN runs, in this process or in several workers."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from PIL import Image
from safetensors.torch import load_file

from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.families.stylegan.config import OF_ONE_GENERATION
from gan_train.nn.collectives import end
from gan_train.runs.runtime import PlainRuntime
from gan_train.training import trainer
from gan_train.training.averaging import GradientAverage
from gan_train.training.trainer import train

_STYLEGAN: dict[str, Any] = {
    "name": "stylegan",
    "conditional": True,
    "z_dim": 8,
    "w_dim": 8,
    "mapping_layers": 2,
    "class_mapping_layers": 2,
    "channel_max": 6,
    "mbstd_group": 2,
    "r1_every": 3,
    "r1_gamma": 0.5,
    "path_length_every": 2,
    "path_length_decay": 0.1,
    "augment": "ada",
    "augment_p": 0.5,
    "augment_kimg": 1,
    "augment_every": 3,
    "w_mean_decay": 0.9,
    "lr": 0.01,
    "kimg": 0.192,
    "fade_kimg": 0.064,
    "stable_kimg": 0.064,
}


def stylegan(generation: int) -> dict[str, Any]:
    """A small conditional StyleGAN with all switched on that keeps state or draws numbers."""
    other = OF_ONE_GENERATION[3 - generation]
    settings = {name: value for name, value in _STYLEGAN.items() if name not in other}
    return settings | {"generation": generation}


def tiny_images(root: Path) -> Path:
    """Write a folder of three class folders, eight RGB PNGs of 16x16 in each, all different."""
    for index, name in enumerate(("blue", "green", "red")):
        folder = root / name
        folder.mkdir(parents=True)
        for number in range(8):
            image = Image.new("RGB", (16, 16), (8 * number, 8 * number, 8 * number))
            image.paste((80 * (index + 1), 16 * number, 200 - 60 * index), (number, 2, 16, 14))
            image.save(folder / f"{number}.png")
    return root


def tiny_config(source: Path, workspace: Path, **changes: Any) -> Config:
    """A conditional ProGAN from 4 to 8 pixels that trains in seconds. `changes` are dotted keys
    with a double underscore for the dot: `train__batch=16`."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "workspace": workspace,
        "data": {
            "source": str(source),
            "resolution": 8,
            "colour": "grey",
            "classes": "folder",
            "shard_images": 16,
            "lanes": 4,
            "block": 4,
        },
        "family": {
            "name": "progan",
            "conditional": True,
            "z_dim": 8,
            "fmap_base": 32,
            "fmap_max": 8,
            "loss": "logistic-r1",
            "r1_every": 3,
            "fade_kimg": 0.064,
            "stable_kimg": 0.064,
        },
        "train": {
            "batch": 16,
            "precision": "float32",  # on every processor, also where `auto` would take bf16
            "tick_kimg": 0.032,
            "sample_kimg": 0.1,
            "checkpoint_kimg": 10,
        },
        # pixel diversity alone: no feature network is loaded
        "evaluate": {"images": 16, "metrics": ["diversity"]},
    }
    for key, value in changes.items():
        *path, last = key.split("__")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return Config.model_validate(tree)


class Stopping(PlainRuntime):
    """Asks for the end when it is asked for the `asked`-th time. The trainer asks after each step,
    and before the first one of a resume."""

    def __init__(self, run_dir: Path, asked: int) -> None:
        super().__init__(run_dir)
        self.left = asked

    def should_stop(self) -> bool:
        self.left -= 1
        return self.left <= 0


def run(config: Config, run_dir: Path, runtime: PlainRuntime | None = None) -> Path:
    """Shard (or verify) and train in this process; returns `run_dir`."""
    run_dir.mkdir(parents=True, exist_ok=True)
    shards = shard(config.data, config.workspace)
    train(config, Index.load(shards), shards, runtime or PlainRuntime(run_dir))
    return run_dir


def _worker(rank: int, world: int, meeting: str, function: Callable[..., None], args: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=world)
    # gradients of small networks, too, shall travel in several buckets
    trainer.GradientAverage = partial(GradientAverage, bucket_bytes=1024)
    function(*args)
    end()


def processes(count: int, function: Callable[..., None], *args: Any) -> None:
    """Call `function(number, *args)` in `count` new processes; raises if one of them fails.

    They are forked from a server that has nothing of this process, but has imported what takes a
    new interpreter seconds: torch, the trainer, and what an optimizer's first step imports."""
    torch.multiprocessing.set_forkserver_preload([__name__, "torch._dynamo"])
    torch.multiprocessing.start_processes(function, args, nprocs=count, start_method="forkserver")


def run_workers(world: int, scratch: Path, function: Callable[..., None], *args: Any) -> None:
    """Call `function(*args)` in `world` gloo workers; raises if one of them fails."""
    meeting = scratch / f"rendezvous-{world}"
    meeting.unlink(missing_ok=True)
    processes(world, _worker, world, str(meeting), function, args)


def newest(run_dir: Path) -> Path:
    """The newest checkpoint's folder."""
    return sorted((run_dir / "checkpoints").iterdir())[-1]


def weights(run_dir: Path, name: str = "networks") -> dict[str, torch.Tensor]:
    """Tensors of the newest checkpoint's file of that name."""
    return load_file(newest(run_dir) / f"{name}.safetensors")


def assert_same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    """Fail unless both hold the same names and the same bits."""
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different
