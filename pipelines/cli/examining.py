"""What `gan-train evaluate` examines in this process, without engines: whether a generator repeats
training images (`--nearest`), and what the measures themselves see (`--self-test`)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

import torch

from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.files.atomic import write_aside
from gan_train.inference import Generator
from gan_train.metrics.evaluator import Evaluator
from gan_train.metrics.extractors import build_extractor, identify
from gan_train.metrics.nearest_page import nearest_pairs, page
from gan_train.metrics.real import RankShare, read_places
from gan_train.metrics.scores import number, with_error
from gan_train.metrics.self_test import most_images, self_test, table
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import list_generators
from gan_train.runs.runtime import PlainRuntime
from gan_train.sections import Metric
from gan_train.tasks.generation import Generation
from gan_train.tasks.task import SHIPPED_STATISTICS, Setting
from gan_train.training.scoring import best_checkpoint


def examine(config: Config, target: str, page_path: Path | None) -> str:
    """Write the page of nearest pairs, or without a path test the measures; returns the text to be
    shown."""
    logging.getLogger("gan_train").setLevel(logging.INFO)
    return examined(config) if page_path is None else nearest(config, target, page_path)


def nearest(config: Config, target: str, path: Path) -> str:
    """Write the page of the nearest pairs of a checkpoint or, of a run, its best or else newest
    one; returns a line of what was found.

    Raises UserError for a run without checkpoints, and a generator that takes pictures.
    """
    folder = _checkpoint(config, target)
    directory = shard(config.data, config.workspace)
    index = Index.load(directory)
    runtime = PlainRuntime(config.workspace, config.cluster.gpu)
    generator = Generator.load(folder, str(runtime.device))
    if generator.task != "generate" or generator.shape != index.image_shape:
        raise UserError(
            f"{folder} makes no images like those of the data set, from latents: nearest pairs are "
            "of such generators; name the recipe of its data with --recipe"
        )
    task = Generation(Setting(config, index, directory, runtime, generator.adversary))
    if task.extractor is None:
        raise UserError(
            "nearest pairs are compared by features: add --set 'evaluate.metrics=[memorisation]'"
        )
    real = task.evaluator.prepare().tensors
    fake = [
        task.extractor.features(task.generate(places)[0])
        for places in torch.arange(task.evaluator.images).split(config.evaluate.batch)
    ]
    pairs = nearest_pairs(real["features"], real["unseen"], torch.cat(fake))
    ours = task.generate(pairs.samples.cpu())[0].cpu()
    ordered, back = pairs.training.cpu().unique(return_inverse=True)
    theirs = read_places(index, directory, ordered)[0][back]
    title = f"{config.name}, {folder.name}"
    write_aside(path, page(title, pairs, ours, theirs).encode())
    chance = with_error(pairs.chance.value, pairs.chance.error)
    return f"{path}: memorisation {chance} (.5 is fair), p = {number(pairs.p)}"


def _checkpoint(config: Config, target: str) -> Path:
    if (Path(target) / "generator.json").is_file():
        return Path(target).absolute()
    run_dir = run_folder.find(config, target)
    evaluate = config.evaluate
    network = evaluate.extractor, evaluate.weights, evaluate.sha256
    metric = identify(*network, config.workspace / "statistics").frechet_name
    found = best_checkpoint(run_dir, metric) or next(iter(list_generators(run_dir)), None)
    if found is None:
        raise UserError(f"{run_dir.name} has no checkpoint yet: wait for the first one")
    return found


def examined(config: Config) -> str:
    """The table of what each measure sees of real images that are degraded step by step."""
    directory = shard(config.data, config.workspace)
    index, evaluate = Index.load(directory), config.evaluate
    device = PlainRuntime(config.workspace, config.cluster.gpu).device
    cache = config.workspace / "statistics"
    network = evaluate.extractor, evaluate.weights, evaluate.sha256
    extractor = build_extractor(*network, cache, device)
    evaluator = Evaluator(
        extractor.identity,
        extractor,
        [metric for metric in get_args(Metric) if metric != "path_length"],
        min(evaluate.images, most_images(index)),
        index,
        directory,
        cache,
        RankShare(0, 1, device, evaluate.batch),
        SHIPPED_STATISTICS,
    )
    return table(self_test(evaluator, index, directory), evaluator.images)
