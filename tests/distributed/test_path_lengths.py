"""One worker or several: the same path lengths, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from gan_train.adversary import Clock, ImageShape
from gan_train.families.progan import ProGANConfig
from gan_train.metrics.path_length import PathLengths
from gan_train.metrics.perceptual import EfficientNetPerceptual
from gan_train.metrics.real import RankShare
from tests.training import run_workers

PATHS = 40  # a group and a part of one: nothing for a third worker


def _measure(results: Path) -> None:
    rank, world = 0, 1
    if torch.distributed.is_initialized():
        rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(0)
    shape = ImageShape(1, 8, ("A", "B"))
    family = ProGANConfig(conditional=True, z_dim=8, fmap_base=64, fmap_max=16)
    adversary = family.build(shape, 16).eval().requires_grad_(False)
    adversary.advance(Clock(10**9, 10**9))  # fully grown
    cpu = torch.device("cpu")
    share = RankShare(rank, world, cpu, batch=30)
    perceptual, counts = EfficientNetPerceptual(cpu), torch.tensor([3, 1])
    meter = PathLengths(("z_full", "z_end"), PATHS, perceptual, adversary, counts, 0, share)
    measured = {name: [e.value, e.error, e.blocks] for name, e in meter.measure().items()}
    found = [meter._lengths("z_full").tolist(), measured]
    results.mkdir(exist_ok=True)
    (results / f"{rank}.json").write_text(json.dumps(found))


def test_path_lengths_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    _measure(tmp_path / "one")
    run_workers(3, tmp_path, _measure, tmp_path / "three")
    (one,) = (json.loads(path.read_text()) for path in (tmp_path / "one").iterdir())
    three = [json.loads(path.read_text()) for path in (tmp_path / "three").iterdir()]
    assert len(set(one[0])) == PATHS and min(one[0]) > 1
    assert three == [one] * 3
