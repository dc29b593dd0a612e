"""From checkpoint to images: what is loaded is what was averaged."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from gan_train import inference
from gan_train.errors import UserError
from gan_train.files.atomic import read_json, write_json
from gan_train.files.digests import sha256_of
from gan_train.images.origin import read
from gan_train.inference import Generator
from gan_train.runs.checkpoint import newest_valid
from tests.training import run, tiny_config, tiny_images


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, trained once for all tests here."""
    folder = tmp_path_factory.mktemp("trained")
    source = tiny_images(folder / "source")
    run_dir = run(tiny_config(source, folder, train__total_kimg=0.1), folder / "run")
    newest = newest_valid(run_dir)
    assert newest is not None
    return newest


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(trained, tmp_path / "checkpoint")


def test_a_checkpoint_makes_images_of_the_data_size(checkpoint: Path) -> None:
    """Also in mid-fade: the last step, at 96 images, was trained at half of the fade to 8 px."""
    generator = Generator.load(checkpoint)
    assert generator.family == "progan" and generator.shape.classes == ("blue", "green", "red")
    assert generator.adversary.status() == {"resolution": 8.0, "alpha": 0.5}
    z = generator.latents(range(5))
    images = generator.images(z, torch.tensor([0, 1, 2, 0, 1]))
    assert images.shape == (5, 1, 8, 8) and images.dtype == torch.uint8
    again = Generator.load(checkpoint).images(z[3:4], torch.tensor([0]))
    assert torch.equal(again, images[3:4])


def test_pictures_of_a_run_name_it(trained: Path) -> None:
    known = Generator.load(trained).origin("generate", seeds="0")
    assert (known.run, known.checkpoint) == ("run", trained.name)
    assert known.weights_sha256 == sha256_of(trained / "generator.safetensors")
    grid = sorted((trained.parents[1] / "samples").glob("*.png"))[-1]
    said = read(grid.read_bytes(), "grid")
    assert (said.command, said.run, said.images_seen) == ("samples", "run", int(grid.stem))


def test_seeds_are_independent_of_their_company(checkpoint: Path) -> None:
    generator = Generator.load(checkpoint)
    assert torch.equal(generator.latents([3, 9])[1], generator.latents([9])[0])


def test_wrong_requests_are_named(checkpoint: Path) -> None:
    generator = Generator.load(checkpoint)
    z = generator.latents([0])
    with pytest.raises(UserError, match="blue, green, red"):
        generator.images(z)
    with pytest.raises(UserError, match="from 0 to 2"):
        generator.images(z, torch.tensor([3]))
    with pytest.raises(UserError, match=r"expected \[N, 8\]"):
        generator.images(torch.zeros(1, 4), torch.tensor([0]))
    with pytest.raises(UserError, match=r"no generator\.json"):
        Generator.load(checkpoint.parent)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("format", 2, "format 2, this one reads format 1"),
        ("format", None, "format None"),
        ("family", {"name": "wavegan"}, "'wavegan'"),
        ("family", {"name": "progan", "wings": 2}, r"progan\.wings: Extra inputs"),
        ("family", {"name": "progan", "z_dim": 9}, "size mismatch"),
        ("shape", {"channels": 1, "resolution": 8, "classes": [], "depth": 3}, "depth"),
    ],
)
def test_a_generator_of_another_version_is_a_sentence_with_a_remedy(
    key: str, value: Any, named: str, checkpoint: Path
) -> None:
    path = checkpoint / "generator.json"
    write_json(path, read_json(path) | {key: value})
    with pytest.raises(UserError, match="another version") as raised:
        Generator.load(checkpoint)
    message = str(raised.value)
    assert re.search(named, message) and "use the version that wrote it" in message


def test_a_description_that_does_not_fit_its_weights_gets_no_memory(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A downloaded description may ask for gigabytes."""
    built: list[str] = []
    build = inference._build

    def recorded(*arguments: Any) -> Any:
        built.append(torch.get_default_device().type)
        return build(*arguments)

    monkeypatch.setattr(inference, "_build", recorded)
    Generator.load(checkpoint)
    assert built == ["meta", "cpu"]
    path = checkpoint / "generator.json"
    write_json(path, read_json(path) | {"family": {"name": "progan", "z_dim": 1000}})
    with pytest.raises(UserError, match="size mismatch"):
        Generator.load(checkpoint)
    assert built == ["meta", "cpu", "meta"]
