"""The benchmark of a step runs the code of a run, in every form. Figures are not tested."""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from gan_train import recipes
from gan_train.adversary import Clock, ImageShape, Losses
from gan_train.bench import operations, step
from gan_train.bench.forms import INSTEAD, Form
from gan_train.bench.operations import Arithmetic, attainable
from gan_train.bench.options import EPILOG, add_arguments
from gan_train.bench.progress import Progress
from gan_train.bench.step import REPEATS, measure
from gan_train.errors import UserError
from gan_train.families.stylegan.build import StyleGANConfig
from gan_train.families.stylegan.family import StyleGAN
from gan_train.rng import BatchRandom
from gan_train.training import trainer
from tests.training import tiny_config

CPU = torch.device("cpu")
STYLEGAN2 = {
    "name": "stylegan",
    "z_dim": 8,
    "w_dim": 8,
    "mapping_layers": 1,
    "channel_base": 64,
    "channel_max": 8,
    "r1_every": 2,
    "path_length_every": 2,
}
OPTIONS = {
    "resolutions": None,
    "batch": None,
    "precisions": None,
    "layouts": None,
    "instead": (),
    "rounds": 1,
}


def recipe(folder: Path, **changes: object) -> str:
    path = folder / "recipe.yaml"
    path.write_text(recipes.dump(tiny_config(folder / "not needed", folder, **changes)))
    return str(path)


def stylegan2(folder: Path) -> str:
    return recipe(folder, family=STYLEGAN2)


@pytest.mark.slow
def test_every_form_of_stylegan2_is_timed_at_every_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "attainable", lambda *_: {"matrix product": 1e12})
    lines = list(
        measure(
            stylegan2(tmp_path),
            ["data.classes=none"],
            resolutions=(8, 16),
            batch=4,
            precisions=("float32", "bf16"),
            layouts=("channels_last", "contiguous"),
            instead=("grouped", "demodulation"),
            rounds=1,
        )
    )
    forms = [
        f"{precision} {way}"
        for precision in ("float32", "bf16")
        for way in ("channels_last", "contiguous", "grouped", "demodulation")
    ]
    text = "\n".join(lines)
    for size in (8, 16):
        assert f"tiny at {size} px, batch 4; CPU" in text
    for form in forms:
        rows = [line for line in lines if line.startswith(f"{form}  ")]
        assert len(rows) == 4  # two tables for each size
        whole, phases = rows[0], rows[1]
        ms, spread, rate, gflop, share = (float(word.rstrip("%")) for word in whole[26:].split())
        assert ms > 0 and spread >= 0 and gflop >= 0 and 0 <= share < 100
        assert rate == pytest.approx(4000 / ms, rel=0.02)
        assert len(phases[26:].split()) == 5
    # at each size: a whole other way with every form of ours, a single one with its precision
    assert len(re.findall("times as long as", text)) == 2 * (2 * 4 + 2 * 2)
    assert "float32 grouped takes" in text and "times as long as bf16 channels_last" in text
    assert "G_path /2" in text and "D_r1 /2" in text
    assert not list(tmp_path.glob("shards*")), "works in a folder of its own"


@pytest.mark.slow
def test_another_family_by_its_recipe_alone_without_engines(tmp_path: Path) -> None:
    program = (
        "import sys, runpy\n"
        "for name in ('ray', 'mlflow', 'prefect', 'pandas', 'pipelines'):\n"
        "    sys.modules[name] = None\n"
        "sys.argv[0] = 'bench_step'\n"
        "runpy.run_module('gan_train.bench.step', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", program, recipe(tmp_path), "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [
        "1 of 2: 8 px, set up: float32 contiguous",
        "2 of 2: 8 px, round 1 of 1: float32 contiguous",
    ]
    assert "tiny at 8 px, batch 16" in done.stdout and "D_r1 /3" in done.stdout


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        (
            "cyclegan-emoji-32",
            ["family.width=4", "family.blocks=1", "family.discriminator_width=4"],
        ),
        (
            "srgan-photos-x4",
            [
                *("family.blocks=1", "family.width=8", "family.high_width=4", "family.kernel=3"),
                *("family.discriminator_width=2", "evaluate.pictures=Set5.zip", "data.held_out=0"),
            ],
        ),
    ],
)
def test_phases_that_take_what_others_leave_are_timed(
    name: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "attainable", lambda *_: {"matrix product": 1e12})
    options = OPTIONS | {"resolutions": (32,), "batch": 4, "precisions": ("float32",)}
    lines = list(measure(name, overrides, **options))
    heads = next(line for line in lines if line.startswith("ms by phase"))
    assert heads.split()[-4:] == ["G", "D", "the", "rest"]


def test_the_commands_of_the_help_can_be_given() -> None:
    commands = EPILOG.replace("\\\n", " ").split("gan-train bench-step ")[1:]
    assert len(commands) == 2
    for command in commands:
        parser = argparse.ArgumentParser()
        parser.add_argument("recipe")
        parser.add_argument("--set", action="append", default=[], dest="overrides")
        add_arguments(parser)
        given = parser.parse_args(command.split("\n\n")[0].split())
        for resolution in given.resolutions:
            size = f"data.resolution={resolution}"
            config = recipes.load(given.recipe, [*given.overrides, size])
            shape = ImageShape(3, resolution)
            assert given.batch % config.family.build(shape, given.batch).grain == 0


def test_progress_is_said_for_every_form_and_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step, "attainable", lambda *_: {"matrix product": 1e9})
    options = OPTIONS | {"layouts": ("contiguous", "channels_last"), "rounds": 2}
    changes = ["data.classes=none", "data.resolution=8"]
    report = list(measure(stylegan2(tmp_path), changes, **options))
    said = capsys.readouterr()
    forms = "float32 contiguous", "float32 channels_last"
    parts = [f"8 px, set up: {form}" for form in forms]
    parts += [f"8 px, round {number} of 2: {form}" for number in (1, 2) for form in forms]
    assert said.err.splitlines() == [f"{i} of 6: {part}" for i, part in enumerate(parts, start=1)]
    assert said.out == "" and report[0].startswith("tiny at 8 px")


def test_progress_is_a_bar_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    with closing(Progress(2, terminal)) as progress:
        with progress.part("8 px, set up: float32"):
            assert "8 px, set up: float32:   0%" in terminal.getvalue()  # said as it begins
        with progress.part("8 px, round 1 of 1: float32"):
            assert "8 px, round 1 of 1: float32:  50%" in terminal.getvalue()
    assert "\n" not in terminal.getvalue()  # the report follows on a line of its own


@pytest.mark.parametrize("way", ["grouped", "sums"])
def test_stylegan2s_other_ways_are_its_alone(tmp_path: Path, way: str) -> None:
    with pytest.raises(UserError, match="no StyleGAN2"):
        list(measure(recipe(tmp_path), [], **OPTIONS | {"instead": (way,)}))


def test_a_batch_that_cannot_be_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="multiple of 4"):
        list(measure(stylegan2(tmp_path), ["data.classes=none"], **OPTIONS | {"batch": 6}))


@pytest.mark.parametrize("way", INSTEAD)
def test_what_is_replaced_is_put_back(way: str) -> None:
    functions = {(module, name): getattr(module, name) for module, name, _ in INSTEAD[way]}
    with pytest.raises(ZeroDivisionError), Form("float32", False, way).active():
        for (module, name), before in functions.items():
            assert getattr(module, name) is not before
        raise ZeroDivisionError
    for (module, name), before in functions.items():
        assert getattr(module, name) is before


@pytest.mark.parametrize("way", [n for n in INSTEAD if n not in ("optimizer", "own_fakes")])
def test_every_way_is_the_same_function(way: str) -> None:
    """A whole regulariser: path lengths go through the generator twice, R1 through D."""
    config = StyleGANConfig.model_validate(STYLEGAN2)
    torch.manual_seed(0)
    adversary = config.build(ImageShape(3, 16), 8).double()
    batch = {"image": torch.rand(8, 3, 16, 16, dtype=torch.float64) * 2 - 1}

    def computed() -> list[torch.Tensor]:
        found = []
        for phase in adversary.stages()[0].phases:
            adversary.zero_grad()
            random = BatchRandom(0, phase.name, torch.arange(8))
            loss = torch.stack(list(phase.loss(batch, random, Clock()).terms.values())).sum()
            loss.backward()
            found += [
                loss.detach(),
                *(p.grad for p in adversary.parameters() if p.grad is not None),
            ]
        return found

    ours = computed()
    with Form("float64", False, way).active():
        other = computed()
    for a, b in zip(ours, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    assert any(not torch.equal(a, b) for a, b in zip(ours, other, strict=True)), "it did not run"


@pytest.mark.parametrize("way", [None, "own_fakes", "scaled"])
def test_fakes_are_shared_in_no_other_way(way: str | None) -> None:
    config = StyleGANConfig.model_validate(STYLEGAN2 | {"shared_fakes": True})
    with Form("float64", False, way).active():
        (stage,) = config.build(ImageShape(3, 16), 8).stages()
    taken = [phase.takes for phase in stage.phases if phase.name == "D"]
    assert taken == [("fake",) if way is None else ()]


def test_both_optimizers_take_the_same_step() -> None:
    found = []
    for way in (None, "optimizer"):
        torch.manual_seed(0)
        adversary = StyleGANConfig.model_validate(STYLEGAN2).build(ImageShape(3, 16), 8).double()
        with Form("float64", False, way).active():
            optimizer = trainer.build_optimizer(adversary, adversary.optimizers()["G"])
        assert optimizer.defaults["fused"] is (way is None)
        for p in adversary.generator.parameters():
            p.grad = torch.sin(p.detach())
        optimizer.step()
        found.append(list(adversary.generator.parameters()))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_round_is_a_cycle_and_each_phase_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = dict.fromkeys(("loss_g", "loss_path", "loss_d", "loss_r1"), 0)

    def counting(name: str) -> Callable[..., Losses]:
        loss = getattr(StyleGAN, name)

        def counted(*arguments: object) -> Losses:
            calls[name] += 1
            return loss(*arguments)

        return counted

    for name in calls:
        monkeypatch.setattr(StyleGAN, name, counting(name))
    family = STYLEGAN2 | {"r1_every": 4}
    overrides = ["data.classes=none", "data.resolution=8"]
    list(measure(recipe(tmp_path, family=family), overrides, **OPTIONS))
    # cycles of 4 steps: to warm up, to count, to time; then each phase alone
    assert calls == {
        "loss_g": 12 + REPEATS,
        "loss_path": 6 + REPEATS,
        "loss_d": 12 + REPEATS,
        "loss_r1": 3 + REPEATS,
    }


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_operations_of_a_convolution_and_its_backward(transposed: bool, groups: int) -> None:
    """Two for each product of a number of the input with a number of the filter."""
    x = torch.randn(3, 4, 9, 7, requires_grad=True)
    if transposed:
        weight = torch.randn(4, 6 // groups, 3, 3, requires_grad=True)
        once = 2 * (3 * 4 * 9 * 7) * (6 // groups) * 9
    else:
        weight = torch.randn(6, 4 // groups, 3, 3, requires_grad=True)
        once = 2 * (3 * 6 * 4 * 3) * (4 // groups) * 9
    convolve = F.conv_transpose2d if transposed else F.conv2d
    with Arithmetic(CPU) as forward:
        y = convolve(x, weight, stride=2, groups=groups)
    assert forward.operations == once
    with Arithmetic(CPU) as backward:
        (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    assert backward.operations == once  # x alone was asked for
    with Arithmetic(CPU) as twice:
        gradient.square().sum().backward()
    assert twice.operations >= 3 * once
    assert twice.seconds > 0


def test_operations_of_matrix_products() -> None:
    a, b, bias = torch.randn(5, 3), torch.randn(3, 4), torch.randn(4)
    with Arithmetic(CPU) as counted:
        a @ b
        F.linear(a, b.T.contiguous(), bias)
        torch.bmm(a.expand(2, 5, 3), b.expand(2, 3, 4))
        a + 1
    assert counted.operations == 2 * 5 * 3 * 4 * (1 + 1 + 2)


@pytest.mark.parametrize(("takes", "tries", "best"), [(0.01, 9, 0.01), (5.0, 1, 5.0)])
def test_the_peak_is_not_tried_for_long(
    takes: float, tries: int, best: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processors without bfloat16 take seconds for a single large product."""
    clock, done = [0.0], []
    matrix = torch.ones(4, 4)

    def work() -> torch.Tensor:
        clock[0] += takes
        done.append(takes)
        return matrix @ matrix

    monkeypatch.setattr(operations, "seconds", lambda device: clock[0])
    assert operations._rate(CPU, work) == pytest.approx(2 * 4**3 / best)
    assert len(done) == tries


@pytest.mark.slow
def test_the_peak_is_a_rate() -> None:
    found = attainable(CPU, torch.float32)
    assert set(found) == {"matrix product", "convolution"}
    assert all(rate > 1e8 for rate in found.values()), found
