"""A killed and resumed StyleGAN ends in the very bits of one that was never killed, with all that
keeps state or draws random numbers switched on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gan_train.runs.checkpoint import list_checkpoints
from tests.faults.test_resume import ALL, run_killed
from tests.training import assert_same_bits, run, stylegan, tiny_config, weights


@pytest.mark.parametrize(
    ("saved", "changes"),
    [
        # augmentation changes at every third step: 48, 96, 144 images
        pytest.param(80, {}, id="inside the interval of the augmentation"),
        pytest.param(96, {}, id="at its end"),
        pytest.param(80, {"train__accumulate": 2, "train__precision": "bf16"}, id="bf16"),
        # generation 1: 8 px to 64 images, fade to 16 px until 128, 16 px until 192
        pytest.param(80, {"family": stylegan(1)}, id="inside the fade"),
        pytest.param(144, {"family": stylegan(1)}, id="after the fade"),
    ],
)
def test_resume_is_bit_exact(
    saved: int, changes: dict[str, Any], tiny_source: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"family": stylegan(2), "data__resolution": 16}
    settings |= {"train__checkpoint_kimg": saved / 1000, "train__tick_kimg": 0.016}
    config = tiny_config(tiny_source, tmp_path, **settings | changes)
    whole = run(config, tmp_path / "whole")
    broken = tmp_path / "broken"
    run_killed(config, broken, saved + 16)
    assert int(list_checkpoints(broken)[0].name) == saved, "killed too early or too late"
    run(config, broken)
    for name in ALL:
        assert_same_bits(weights(broken, name), weights(whole, name))
    state = weights(whole)
    assert 0 < float(state["augment_p"]) != 0.5 and state["generator.mapping.w_avg"].any()
    strengths = [value for name, value in state.items() if name.endswith("noise_strength")]
    assert strengths and all(value.all() for value in strengths)
    assert (float(state["path_length_mean"]) > 0) == ("family" not in changes)  # generation 2's
