"""A rehearsal takes real steps of every stage without the data set, and counts where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gan_train.adversary import Clock, ImageShape
from gan_train.bench import counting
from gan_train.bench.operations import Arithmetic
from gan_train.bench.rehearsal import rehearse
from gan_train.config import Config
from gan_train.rng import BatchRandom
from tests.training import stylegan, tiny_config

SHAPE = ImageShape(1, 8, ("blue", "green", "red"))


def tiny(folder: Path, **changes: Any) -> Config:
    return tiny_config(folder / "nowhere", folder / "workspace", **changes)


@pytest.mark.parametrize("workers", [1, 2])
def test_every_stage_is_tried_and_nothing_is_left_behind(tmp_path: Path, workers: int) -> None:
    config = tiny(tmp_path, cluster__workers=workers)
    found = rehearse(config, SHAPE, workers, workers, threads=1)
    assert list(found.seconds) == ["4", "8-fade", "8"]
    assert all(seconds > 0 for seconds in found.seconds.values())
    assert found.cpu_seconds.keys() == found.seconds.keys() and min(found.cpu_seconds.values()) > 0
    assert found.scoring is not None and found.scoring > 0
    assert found.memory_gib is not None and 0.05 < found.memory_gib < 10
    assert found.device == "cpu"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("family", "data"),
    [
        (
            {"name": "cyclegan", "width": 4, "blocks": 1, "halvings": 1, "pool_size": 3}
            | {"discriminator_width": 4, "discriminator_layers": 1},
            {"second": {"source": "elsewhere", "pairs": "names"}, "held_out": 0.25},
        ),
        (
            {"name": "srgan", "blocks": 1, "width": 8, "high_width": 4, "kernel": 3}
            | {"discriminator_width": 2, "pretrain_kimg": 1, "content_weight": 0},
            {"held_out": 0.25},
        ),
        (stylegan(2), {"classes": "folder"}),
    ],
    ids=["cyclegan", "srgan", "stylegan2"],
)
def test_other_tasks_get_what_stands_beside_an_image(
    tmp_path: Path, family: dict[str, Any], data: dict[str, Any]
) -> None:
    place = {"source": "nowhere", "resolution": 32, "lanes": 4}
    config = tiny(tmp_path, family=family, data=place | data, train__batch=4)
    classes = SHAPE.classes if "classes" in data else ()
    found = rehearse(config, ImageShape(3, 32, classes), workers=2, world=1, threads=1)
    stages = config.family.build(ImageShape(3, 32, classes), 4).stages()
    assert list(found.seconds) == [stage.name for stage in stages]
    assert found.scoring is not None


def test_a_stage_that_is_too_large_is_not_tried(tmp_path: Path) -> None:
    family = {"name": "progan", "fmap_max": 2, "start_resolution": 256, "loss": "wgan-gp"}
    data = {"source": "nowhere", "resolution": 256}
    config = tiny(tmp_path, family=family, data=data, train__batch=64)
    shape = ImageShape(1, 256)
    assert rehearse(config, shape, 1, 1, threads=1).seconds == {}
    assert rehearse(config, shape, 8, 1, threads=1).seconds.keys() == {"256"}, "a share is small"


def test_what_goes_wrong_in_a_worker_is_raised(tmp_path: Path) -> None:
    config = tiny(tmp_path, family={"name": "cgan"})
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="cgan needs classes"):
        rehearse(config, ImageShape(1, 8), 1, 1, threads=1)


def test_operations_are_counted_as_they_are_executed(tmp_path: Path) -> None:
    family = stylegan(2) | {"augment": "none"}
    config = tiny(tmp_path, family=family, data__resolution=16)
    shape = ImageShape(1, 16, SHAPE.classes)
    found = counting.count(config, shape, ["16"])["16"]
    adversary = config.family.build(shape, config.train.batch)
    (stage,) = adversary.stages()
    images = 6
    batch = {"image": torch.zeros(images, 1, 16, 16), "label": torch.zeros(images).long()}
    operations = 0.0
    for phase in stage.phases:
        random = BatchRandom(0, phase.name, torch.arange(images))
        with Arithmetic(torch.device("cpu")) as counted:
            terms = phase.loss(batch, random, Clock()).terms
            torch.stack(list(terms.values())).sum().backward()
        operations += counted.operations / phase.every
    assert found.operations == pytest.approx(operations / images, rel=0.02)
    weights = sum(p.numel() for p in adversary.parameters())
    averaged = sum(p.numel() for p in adversary.generator.parameters())
    assert found.parameters == 16 * weights + 4 * averaged
    more = found.memory_gib(images + 1) - found.memory_gib(images)
    assert more == pytest.approx(found.activations / 2**30) and found.activations > 4 * 16 * 16


def test_stages_are_counted_together(tmp_path: Path) -> None:
    found = counting.count(tiny(tmp_path), SHAPE, ["4", "8"])
    assert found["8"].operations > found["4"].operations > 0


def test_what_needs_contents_cannot_be_counted(tmp_path: Path) -> None:
    config = tiny(tmp_path, family=stylegan(2), data__resolution=16)
    assert counting.count(config, ImageShape(1, 16, SHAPE.classes), ["16"]) == {}
