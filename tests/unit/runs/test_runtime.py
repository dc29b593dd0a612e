"""Which device a plain process trains on."""

from __future__ import annotations

import pytest
import torch

from gan_train.errors import UserError
from gan_train.runs import runtime


@pytest.mark.parametrize(
    ("gpu", "found", "local_rank", "device"),
    [
        ("auto", 0, 0, "cpu"),
        ("auto", 0, 1, "cpu"),
        ("auto", 2, 1, "cuda:1"),
        ("yes", 1, 0, "cuda:0"),
        ("no", 2, 1, "cpu"),
    ],
)
def test_the_device(
    monkeypatch: pytest.MonkeyPatch, gpu: str, found: int, local_rank: int, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    assert runtime._device(gpu, local_rank) == torch.device(device)


@pytest.mark.parametrize(("gpu", "found", "local_rank"), [("auto", 1, 1), ("yes", 0, 0)])
def test_a_process_without_a_gpu_of_its_own_is_refused(
    monkeypatch: pytest.MonkeyPatch, gpu: str, found: int, local_rank: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(
        UserError, match=rf"no GPU of its own, there are {found}: .*cluster\.gpu=no"
    ):
        runtime._device(gpu, local_rank)
