"""The benchmark of messages sends what each way says. What the figures are is not tested."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from gan_train.adversary import ImageShape
from gan_train.bench.messages import WAYS, Paced, main, measure
from gan_train.config import Config
from tests.training import run_workers, stylegan, tiny_config

LINE = re.compile(r"(\w+) +[\d.]+ ms a step, +([\d.]+) times as long as none \([\d.]+ to [\d.]+\)")


def _lines(config: Config, paced_ms: float | None) -> None:
    head, *lines = measure(config, list(WAYS), steps=1, rounds=2, paced_ms=paced_ms)
    assert head.startswith("tiny, 2 workers; ")
    found = [LINE.fullmatch(line) for line in lines]
    assert [match and match[1] for match in found] == list(WAYS), lines
    assert found[0] is not None and found[0][2] == "1.000"


@pytest.mark.parametrize("paced_ms", [None, 3.0])
def test_every_way_is_timed(paced_ms: float | None, tmp_path: Path) -> None:
    run_workers(2, tmp_path, _lines, tiny_config(tmp_path / "not needed", tmp_path), paced_ms)


def _sent(config: Config) -> None:
    sent: list[int] = []
    reduce = dist.all_reduce

    def noted(tensor: Tensor, **how: Any) -> Any:
        sent.append(tensor.numel())
        return reduce(tensor, **how)

    dist.all_reduce = noted
    family = config.family.build(ImageShape(1, 8, ("a", "b")), 16)
    paced = Paced(family, 0.001)
    sizes = [
        sum(p.numel() for p in net.parameters()) for net in (family.generator, family.discriminator)
    ]
    for way, expected in (("none", []), ("after", sizes), ("beside", sizes)):
        paced.average = WAYS[way]()
        for _ in range(2):
            sent.clear()
            paced.step()
            assert sorted(sent) == sorted(expected), (way, sent)


def test_paced_networks_send_as_much_as_real_ones(tmp_path: Path) -> None:
    family = stylegan(2)
    config = tiny_config(tmp_path / "not needed", tmp_path)
    tree = config.model_dump(mode="json") | {"family": family}
    run_workers(2, tmp_path, _sent, Config.model_validate(tree))


def test_without_torchrun_a_sentence_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 2
    assert "start the workers by torchrun" in capsys.readouterr().err
    assert not torch.distributed.is_initialized()
