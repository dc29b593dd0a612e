"""What is exported is compared before it is kept. That each family's file is the same as the family
is shown on trained weights, in tests/distributed/test_recipes.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gan_train.errors import UserError
from gan_train.inference import Generator
from gan_train.sampling.export import export, largest_difference
from gan_train.sampling.programs import Inputs, Program
from tests.unit.sampling.fakes import NoStyles, linear


class Deviating(NoStyles):
    """A family that is traced as another function than it is."""

    def sample(self, z: Tensor, label: Tensor | None, truncation: float = 1.0) -> Tensor:
        image = super().sample(z, label, truncation)
        return image + 3 / 255 if torch.compiler.is_exporting() else image


def test_a_file_that_differs_is_not_kept(tmp_path: Path) -> None:
    deviating = Generator(Deviating(), "deviating")
    with pytest.raises(UserError, match=r"not written: .* differ from gan-train's by 0\.0059"):
        export(deviating, "torch", tmp_path / "x.pt2", 8, {})
    assert not list(tmp_path.iterdir())


def test_a_program_of_torch_takes_classes_and_truncation(tmp_path: Path) -> None:
    generator = linear(conditional=True)
    (made,) = export(generator, "torch", tmp_path / "x.pt2", 9, {"model": "models:/x/1"})
    assert made.difference < 1e-6 and made.images == 9
    assert made.inputs == ("z float32 [n, 4]", "label int64 [n]", "truncation float32 [n]")
    read = {"gan-train": ""}
    program = torch.export.load(made.path, extra_files=read).module()
    about = json.loads(read["gan-train"])
    assert about["model"] == "models:/x/1" and about["classes"] == ["round", "square", "star"]
    z, label = generator.latents(range(5)), torch.tensor([0, 1, 2, 1, 0])
    image = program(z=z, label=label, truncation=torch.full((5,), -0.5))
    torch.testing.assert_close(image, generator.adversary.sample(z, label, -0.5))


def test_a_single_wrong_value_counts() -> None:
    program = Program(linear())

    def answer(inputs: Inputs, value: float) -> Tensor:
        image = program.answer(inputs).clone()
        if len(image) > 1:
            image[-1, 0, 3, 3] += value
        return image

    assert largest_difference(program, lambda x: answer(x, 0), 70) == 0
    assert largest_difference(program, lambda x: answer(x, 0.5), 70) == pytest.approx(0.25)
    nothing = largest_difference(program, lambda x: answer(x, float("nan")), 70)
    assert nothing != nothing
    assert largest_difference(program, lambda x: program.answer(x)[:1], 70) != 0


def test_what_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"onnx files end in \.onnx"):
        export(linear(), "onnx", tmp_path / "x.pt2", 8, {})
    with pytest.raises(UserError, match="allowed: 1 or more"):
        export(linear(), "onnx", tmp_path / "x.onnx", 0, {})
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"needs onnxscript: install .* gan-train\[onnx\]"):
        export(linear(), "onnx", tmp_path / "x.onnx", 8, {})
