"""`gan-train evaluate --nearest`, as it is typed, and scores on the features of a given file."""

from __future__ import annotations

from pathlib import Path

import pytest

from gan_train import recipes
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.metrics.protocol import refuse_unless_comparable
from gan_train.metrics.scores import headline, scores_of
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.scoring import evaluate_checkpoint
from pipelines.cli.main import main
from tests.pipelines.cli.test_sampling import untrained
from tests.training import tiny_config, tiny_images
from tests.vision_transformers import dinov2, save

SETTINGS = ("evaluate.images=12", "evaluate.metrics=[memorisation]", "cluster.gpu=no")


def test_the_nearest_pairs_of_a_checkpoint_become_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_images(tmp_path / "images")
    folder = untrained(tiny_config(source, tmp_path), tmp_path / "train" / "tiny-1")
    page, before = tmp_path / "pairs.html", sorted(folder.iterdir())
    options = [option for setting in SETTINGS for option in ("--set", setting)]
    assert main(["evaluate", str(folder), "--nearest", str(page), *options]) == 0
    assert "memorisation 0 (.5 is fair), p = 1" in capsys.readouterr().out  # noise copies nothing
    written = page.read_text(encoding="utf-8")
    assert written.count("<figure>") == 12 and "tiny, 000000001000" in written
    assert sorted(folder.iterdir()) == before

    pixels = [*options, "--set", "evaluate.metrics=[diversity]"]
    assert main(["evaluate", str(folder), "--nearest", str(page), *pixels]) != 0
    assert "compared by features" in capsys.readouterr().err


def test_a_run_is_scored_on_the_features_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names and protocol hold the digest, and another file's scores are no match."""
    plain = tiny_config(tiny_images(tmp_path / "images"), tmp_path)
    folder = untrained(plain, tmp_path / "train" / "tiny-1")
    directory = shard(plain.data, tmp_path)
    protocols = []
    for seed in (0, 1):
        location, digest = save(dinov2(seed=seed), tmp_path / f"{seed}.safetensors")
        network = {"extractor": "dinov2", "weights": location, "sha256": digest}
        settings = {"images": 12, "metrics": ["frechet", "kid", "memorisation"], **network}
        config = recipes.change(plain, {f"evaluate.{key}": v for key, v in settings.items()})
        runtime = PlainRuntime(tmp_path, "no")
        scored = evaluate_checkpoint(config, Index.load(directory), directory, folder, runtime)
        name = f"dinov2_vit128x2p14_{digest[:8]}"
        assert scored["scores"][f"fd_{name}"] > scored["scores"][f"fd_{name}_null"]
        assert {f"kid_{name}", f"kid_{name}_null", f"memorised_p_{name}"} <= {*scored["scores"]}
        decides = headline(scores_of(scored["scores"], scored["protocol"]))
        assert decides is not None and decides.name == f"fd_{name}"
        assert decides.measure.label.startswith("Fréchet distance dinov2")
        protocol = scored["protocol"]
        assert (protocol["extractor"], protocol["weights"]) == (name, digest)
        assert protocol["resize"] == "bicubic224"
        protocols.append(protocol)
    with pytest.raises(UserError, match="different feature extractors"):
        refuse_unless_comparable(*protocols)

    page = tmp_path / "pairs.html"
    command = ["evaluate", str(folder.parents[1]), "--nearest", str(page)]
    for setting in (*SETTINGS, *(f"evaluate.{key}={value}" for key, value in network.items())):
        command += ["--set", setting]
    assert main(command) == 0
    assert page.exists()
    capsys.readouterr()
    assert main([*command, "--set", f"evaluate.sha256={'ab' * 32}"]) == 2
    assert "1.safetensors has the SHA-256" in capsys.readouterr().err
