"""The best checkpoint is scored anew on latents that did not choose it, by training or later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gan_train import recipes
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.files.atomic import read_json
from gan_train.inference import Generator
from gan_train.runs import run_folder
from gan_train.runs.integrity import REPORTED
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.scoring import Scorer, evaluate_checkpoint
from gan_train.training.trainer import train
from pipelines.flows.evaluation import fresh, report_best
from pipelines.registry.promotion import best_checkpoint
from tests.training import tiny_config

METRIC = "fd_efficientnet_lite0"


def test_the_best_checkpoint_is_scored_anew(
    tiny_source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes: dict[str, Any] = {"evaluate__metrics": ["frechet"], "evaluate__images": 12}
    config = tiny_config(tiny_source, tmp_path / "workspace", **changes)
    shards = shard(config.data, config.workspace)
    run_dir, index = run_folder.new(config, shards), Index.load(shards)
    train(config, index, shards, PlainRuntime(run_dir))
    best = best_checkpoint(run_folder.read_events(run_dir), 8)
    assert best is not None
    (path,) = run_dir.glob(f"checkpoints/*/{REPORTED}")
    assert path.parent == run_dir / best["path"]
    reported = read_json(path)
    assert (best["protocol"]["latents"], reported["protocol"]["latents"]) == (0, 1)
    assert reported["scores"][METRIC] != best["scores"][METRIC]
    assert reported["scores"][f"{METRIC}_se"] > 0 and len(reported["blocks"]) == 12

    # what is there is not measured again; what is not, is, and comes out the same
    def scored(config: Any, shards: Path, folder: Path) -> dict[str, Any]:
        return evaluate_checkpoint(config, index, shards, folder, PlainRuntime(run_dir))

    report_best(config, run_dir, lambda *_: pytest.fail("was called"))
    path.unlink()
    report_best(config, run_dir, scored)
    assert read_json(path) == reported
    adversary = Generator.load(path.parent).adversary

    # what is damaged has no score, neither now nor where training measures it
    weights = path.parent / "generator.safetensors"
    whole = bytearray(weights.read_bytes())
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    path.unlink()
    report_best(config, run_dir, lambda *_: pytest.fail("was called"))
    Scorer(config, index, shards, PlainRuntime(run_dir), adversary).report_best()
    assert not path.exists() and "generator.safetensors is not what was written" in caplog.text
    weights.write_bytes(whole)
    Scorer(config, index, shards, PlainRuntime(run_dir), adversary).report_best()
    assert read_json(path) == reported

    # the latents that choose depend on the seed; those that are reported are the same for all
    images = {}
    for latents in (0, 1, 2):
        for seed in (0, 7):
            chosen = recipes.change(config, {"evaluate.latents": latents, "seed": seed})
            task = Scorer(chosen, index, shards, PlainRuntime(run_dir), adversary).task
            images[latents, seed] = task.generate(torch.arange(4))[0]  # type: ignore[attr-defined]
    assert torch.equal(images[1, 0], images[1, 7]) and not torch.equal(images[0, 0], images[0, 7])
    assert not torch.equal(images[1, 0], images[2, 0])
    assert fresh(config, run_dir).evaluate.latents == 1
