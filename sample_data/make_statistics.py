"""Measures the sample data's real images under the demo's protocol, and writes `statistics/`.

    python sample_data/make_statistics.py

Run it again when the shards' bytes, the protocol or the form of the statistics change; the tests
tell.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from gan_train import recipes
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.metrics import real_cache, shipped
from gan_train.metrics.evaluator import Evaluator
from gan_train.metrics.extractors import build_extractor
from gan_train.metrics.real import RankShare


def measure(folder: Path) -> Evaluator:
    """An evaluator of the demo's protocol that has measured the real images; shards and cache go to
    the folder."""
    config = recipes.with_absolute_paths(recipes.load("demo"))
    directory = shard(config.data, folder / "shards")
    device, evaluate = torch.device("cpu"), config.evaluate
    extractor = build_extractor(evaluate.extractor, None, None, folder, device)
    evaluator = Evaluator(
        extractor.identity,
        extractor,
        evaluate.metrics,
        evaluate.images,
        Index.load(directory),
        directory,
        folder / "cache",
        RankShare(0, 1, device, evaluate.batch),
    )
    evaluator.prepare()
    return evaluator


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        evaluator = measure(Path(folder))
        target = Path(__file__).parent / "statistics"
        packed = shipped.pack(evaluator.prepare())
        real_cache.store(target, evaluator.protocol(), packed)
        print(f"{target}: {sum(file.stat().st_size for file in target.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
