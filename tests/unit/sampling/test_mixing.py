"""The table of mixed styles: who stands where, and which layers come from whom."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gan_train.errors import UserError
from gan_train.inference import Generator
from gan_train.sampling.mixing import layer_numbers, mix
from gan_train.sampling.painter import Look, Painter
from tests.unit.sampling.fakes import SIDE, NoStyles, linear, shown

SCALE = 4  # a sheet of images of 16 px has pixels repeated to be seen


def table(path: Path) -> Tensor:
    """uint8 [rows, columns, R, R] of a grey sheet."""
    sheet = torch.from_numpy(np.asarray(Image.open(path)).copy())[::SCALE, ::SCALE]
    rows, columns = (side // SIDE for side in sheet.shape)
    return sheet.view(rows, SIDE, columns, SIDE).transpose(1, 2)


def drawn(generator: Generator, seeds: list[int], look: Look) -> list[Tensor]:
    painter = Painter(generator, look)
    return list(painter.from_latents(generator.latents(seeds), None, seeds))


@pytest.mark.parametrize("look", [Look(), Look(0.5, 3)])
def test_a_cell_is_its_row_but_for_the_layers_of_its_column(look: Look, tmp_path: Path) -> None:
    generator, rows, columns = linear(), [0, 1], [10, 11, 12]
    out = mix(generator, rows, columns, "2,4-5", None, look, tmp_path / "mix.png")
    cells = table(out)
    left, top = drawn(generator, rows, look), drawn(generator, columns, look)
    assert cells.shape[:2] == (3, 4) and not cells[0, 0].any()
    for c in range(3):
        assert torch.equal(cells[0, c + 1], top[c][0])
    for r in range(2):
        assert torch.equal(cells[r + 1, 0], left[r][0])
        for c in range(3):
            expected = shown(left[r]).clone()
            expected[[2, 4, 5]] = shown(top[c])[[2, 4, 5]]
            assert torch.equal(shown(cells[r + 1, c + 1][None]), expected)
            assert not torch.equal(expected, shown(left[r]))


def test_new_noise_stays_with_the_row(tmp_path: Path) -> None:
    out = mix(linear(), [0, 1], [5, 6], "0", None, Look(noise="random"), tmp_path / "mix.png")
    grain = table(out)[..., -1]  # [3, 3, R]
    assert torch.equal(grain[1, 0], grain[1, 1]) and torch.equal(grain[1, 0], grain[1, 2])
    assert not torch.equal(grain[1, 0], grain[2, 0])


def test_names_of_layers() -> None:
    assert layer_numbers("coarse", 10) == [0, 1, 2, 3]
    assert layer_numbers("middle", 10) == [4, 5, 6, 7]
    assert layer_numbers("fine", 10) == [8, 9]
    assert layer_numbers("5,0-2,1", 10) == [0, 1, 2, 5]
    assert layer_numbers("middle", 6) == [4, 5]
    for text in ("10", "0-10", "3-1", "soft", "", "1,", "-1", "0-99999999999999"):
        with pytest.raises(UserError, match="allowed: coarse, middle, fine, or numbers"):
            layer_numbers(text, 10)
    with pytest.raises(UserError, match="--layers fine: allowed: coarse, middle, or"):
        layer_numbers("fine", 8)


def test_it_needs_styles_and_a_png(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mix needs a family with styles"):
        mix(Generator(NoStyles(), "plain"), [0], [1], "0", None, Look(), tmp_path / "mix.png")
    with pytest.raises(UserError, match=r"mix.jpg: allowed: a name ending in .png"):
        mix(linear(), [0], [1], "0", None, Look(), tmp_path / "mix.jpg")
