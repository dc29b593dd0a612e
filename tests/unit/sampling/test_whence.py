"""A picture is drawn again from its metadata alone; what hostile metadata ask for is not drawn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from gan_train.errors import UserError
from gan_train.images.origin import Identity, Origin, chunk, read
from gan_train.inference import Generator
from gan_train.sampling.generate import generate, regenerate
from gan_train.sampling.interpolation import Walk, interpolate
from gan_train.sampling.mixing import mix
from gan_train.sampling.painter import Look
from gan_train.sampling.whence import difference, in_words
from tests.unit.sampling.fakes import LinearStyles

WEIGHTS = "ab" * 32
LOOK = Look(0.7, 3, "random")


@pytest.fixture
def generator() -> Generator:
    known = Identity(model="models:/x/1", weights_sha256=WEIGHTS)
    return Generator(LinearStyles(3, conditional=True), "linear", known)


def apart(generator: Generator, path: Path) -> int | None:
    data = path.read_bytes()
    return difference(generator, data, read(data, "a.png"))


DRAWN: dict[str, Callable[[Generator, Path], object]] = {
    "grid.png": lambda g, p: generate(g, [3, 4, 5, 9, 2], None, LOOK, p),
    "one/4.png": lambda g, p: generate(g, [3, 4, 5], None, LOOK, p.parent),
    "mix.png": lambda g, p: mix(g, [1, 2], [7, 8, 9], "0-2", "star", LOOK, p),
    "walk/frame-00005.png": lambda g, p: interpolate(
        g, Walk((1, 2), ("star", "round"), None, 4, loop=True), LOOK, p.parent, 25
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_picture_is_drawn_again(name: str, generator: Generator, tmp_path: Path) -> None:
    DRAWN[name](generator, tmp_path / name)
    assert apart(generator, tmp_path / name) == 0
    # another look is another picture, so the look counts
    data = (tmp_path / name).read_bytes()
    other = read(data, name).model_copy(update={"truncation": 0.2})
    found = difference(generator, data, other)
    assert found is not None and found > 1 and "was changed" in in_words(found)


def test_what_cannot_be_drawn_again_says_why(generator: Generator, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2, 6)}, tmp_path / "w.safetensors")
    regenerate(generator, tmp_path / "w.safetensors", Look(), tmp_path / "w.png")
    with pytest.raises(UserError, match="styles in a file"):
        apart(generator, tmp_path / "w.png")
    generate(generator, [1], "star", Look(), tmp_path / "a.png")
    generator.identity = Identity(weights_sha256="cd" * 32)
    with pytest.raises(UserError, match="other weights"):
        apart(generator, tmp_path / "a.png")


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"seeds": "0-99999"}, "at most 1 images"),
    ({"seeds": "0-18446744073709551616"}, "allowed: at most"),
    ({"seeds": "\x1b[2J"}, "numbers and ranges"),
    ({"seeds": "1", "classes": ["<script>"]}, "allowed: round"),
    ({"seeds": "1", "cutoff": 999}, "allowed: 1 to 10"),
    ({"command": "mix", "seeds": "0-9", "others": "0-9"}, "at most 1 images"),
    ({"command": "mix", "seeds": "0", "others": "0", "layers": "99"}, "--layers 99"),
    ({"command": "interpolate", "seeds": "0-9", "frames": 9, "frame": 10**8}, "no way"),
    ({"command": "interpolate", "seeds": "0-2000"}, "at most 1000"),
    ({"command": "upscale"}, "another picture"),
    ({"command": "samples"}, "not kept"),
]


@pytest.mark.parametrize(("said", "why"), HOSTILE, ids=range(len(HOSTILE)))
def test_no_more_is_drawn_than_a_picture_shows(
    said: dict[str, Any], why: str, generator: Generator, tmp_path: Path
) -> None:
    origin = Origin.model_validate(
        {"command": "generate", "weights_sha256": WEIGHTS, "classes": ["star"]} | said
    )
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png", pnginfo=chunk(origin))
    with pytest.raises(UserError, match=why):
        apart(generator, tmp_path / "a.png")
