"""The model of a network's cost, against what was measured in network namespaces."""

from __future__ import annotations

import pytest

from gan_train import recipes
from gan_train.bench import scaling

RECIPE = "stylegan2-ffhq-1024-8gpu"
# milliseconds a step: without messages, with them after the backward passes, and beside them
MEASURED = {2: (742.8, 2809.3, 2373.9), 3: (746.1, 3551.9, 3031.9), 4: (747.7, 3870.2, 3373.2)}


@pytest.mark.parametrize("workers", MEASURED)
def test_the_model_tells_what_was_measured_at_1_gbit(workers: int) -> None:
    alone, after, beside = MEASURED[workers]
    load = scaling.load_of(recipes.load(RECIPE), alone / 1000)
    assert load.after(workers, 1) * 1000 == pytest.approx(after, rel=0.03)
    assert load.beside(workers, 1) * 1000 == pytest.approx(beside, rel=0.1)


def test_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main([RECIPE, "--step-ms", "700", "--gbit", "100"]) == 0
    head, eight, many, most = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["workers", "batch"]
    assert eight.split()[:2] == ["8", "32"] and "needs" not in eight and "lanes" not in eight
    assert "train.batch=256 data.lanes=64" in many
    assert "train.batch=2048 data.lanes=512" in most
    efficiency = [float(line.split("%")[0].split()[-1]) for line in (eight, many, most)]
    assert 90 < efficiency[2] <= efficiency[1] <= efficiency[0] <= 100


def test_an_unknown_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main(["nope", "--step-ms", "1"]) == 2
    assert "no such recipe" in capsys.readouterr().err
