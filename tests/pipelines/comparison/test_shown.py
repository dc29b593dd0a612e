"""What `gan-train diff` shows of versions that are given pictures: the same ones, beside what both
made of them."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gan_train import recipes
from gan_train.adversary import DOMAINS, Domain
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.images.resize import bicubic_downsample
from gan_train.inference import Generator
from gan_train.metrics.real import read_places
from pipelines.cli.main import main
from pipelines.registry import versions
from tests.pipelines import registry_runs
from tests.training import tiny_images

# MLflow's code uses what has been deprecated
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(r"ignore::DeprecationWarning"),
    pytest.mark.filterwarnings(r"ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),
]
UPSCALES, TRANSLATES = "srgan-photos-x2", "cyclegan-emoji-32"
SMALL = {  # without `skip`, untrained networks do more than nothing
    UPSCALES: [
        *("family.blocks=1", "family.width=2", "family.high_width=2", "family.skip=none"),
        "data.only_classes=[]",
    ],
    TRANSLATES: [
        *("family.blocks=1", "family.width=2", "family.skip=false", "data.second.pairs=none"),
    ],
}
Show = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the images, and a workspace with their shards and two versions of each task.
    The data of the second version that translates are not there."""
    folder = tmp_path_factory.mktemp("pictures")
    tiny_images(folder / "a")
    tiny_images(folder / "b")
    for recipe in SMALL:
        config = configured(folder, recipe)
        data = Index.load(shard(config.data, config.workspace))
        gone = registry_runs.index().model_copy(update={"channels": 3, "resolution": 32})
        other = data if recipe == UPSCALES else gone
        for number, index in enumerate((data, other), 1):
            run = registry_runs.Run(config, index, f"{recipe}-{number}")
            nimg = 1000 * number
            run.image(nimg)
            run.checkpoint(nimg, 50.0 / number)
            run.end(nimg)
            versions.register_best(config, run.folder, index, {})
    return folder


def configured(folder: Path, recipe: str) -> Config:
    second = [f"data.second.source={folder / 'b'}"] if recipe == TRANSLATES else []
    data = [f"data.source={folder / 'a'}", "data.resolution=32", "data.held_out=0.5", *second]
    place = [f"workspace={folder / 'workspace'}", "data.lanes=2", "data.shard_images=16"]
    return recipes.load(recipe, [*SMALL[recipe], *data, *place])


@pytest.fixture
def show(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Show:
    """The command, as a function of both versions and of settings: the answer and the page."""

    def call(left: str, right: str, *settings: str) -> tuple[str, str]:
        options = [f"--set={one}" for one in (f"workspace={place / 'workspace'}", *settings)]
        out = ["--out", str(tmp_path / "diff.html"), "--no-artifact"]
        assert main(["diff", left, right, *out, *options]) == 0
        return capsys.readouterr().out, (tmp_path / "diff.html").read_text(encoding="utf-8")

    return call


def figures(page: str) -> list[tuple[str, Tensor]]:
    """The pictures of a page as uint8 [C, h, w], each with what stands below it."""
    found = re.findall(r"base64,([^\"]+)\".*?<b>(.*?)</b>", page, re.DOTALL)
    opened = [(title, Image.open(io.BytesIO(base64.b64decode(png)))) for png, title in found]
    return [(t, torch.from_numpy(np.array(image)).permute(2, 0, 1)) for t, image in opened]


def sheet(images: list[Tensor], across: int) -> Tensor:
    """Images of one size, `across` in each row, as one."""
    rows = [torch.cat(images[n : n + across], 2) for n in range(0, len(images), across)]
    missing = rows[0].shape[2] - rows[-1].shape[2]
    rows[-1] = torch.nn.functional.pad(rows[-1], (0, missing))
    return torch.cat(rows, 1)


def generators(place: Path, recipe: str) -> list[Generator]:
    config = configured(place, recipe)
    return [Generator.load(versions.download(config, number)) for number in ("1", "2")]


def held_out(place: Path, recipe: str, domain: Domain) -> list[Tensor]:
    """The images that the tests' data hold out, of which there are fewer than the page has room
    for."""
    config = configured(place, recipe)
    directory = shard(config.data, config.workspace)
    part = Index.load(directory).part("A_held_out" if domain == "A" else "B_held_out")
    assert part is not None and 4 < part.samples <= 16
    return list(read_places(part, directory, torch.arange(part.samples))[0])


def assert_shows(page: str, expected: list[tuple[str, list[Tensor]]], across: int) -> None:
    """What the columns of a page show; no two show the same."""
    found = figures(page)
    assert [title for title, _ in found] == [title for title, _ in expected]
    assert len({picture.numpy().tobytes() for _, picture in found}) == len(found)
    for (title, picture), (_, images) in zip(found, expected, strict=True):
        assert torch.equal(picture, sheet(images, across)), title


def enlarged(image: Tensor, scale: int) -> Tensor:
    block = np.ones((1, scale, scale), np.uint8)
    return torch.from_numpy(np.kron(image.numpy(), block))


def test_both_upscale_the_same_pictures_beside_inputs_and_originals(
    place: Path, show: Show
) -> None:
    said, page = show(f"models:/{UPSCALES}/1", f"models:/{UPSCALES}/2")
    originals = held_out(place, UPSCALES, "A")
    lows = [bicubic_downsample(image, 2) for image in originals]
    first, second = ([g.converted(low) for low in lows] for g in generators(place, UPSCALES))
    expected = [
        ("Input, 1/2 of each side", [enlarged(low, 2) for low in lows]),
        ("version 1", first),
        ("version 2", second),
        ("Original", originals),
    ]
    assert_shows(page, expected, 4)
    assert f"{len(lows)} pictures that the data of version 2 hold out from training" in page
    assert "version 2 has the lowest" in said


def test_named_pictures_are_upscaled_instead(place: Path, show: Show, tmp_path: Path) -> None:
    waves = np.add.outer(np.arange(150), 3 * np.arange(40))[..., None] * np.array([1, 2, 3]) % 256
    (tmp_path / "mine").mkdir()
    Image.fromarray(waves.astype(np.uint8)).save(tmp_path / "mine" / "waves.png")
    named = f"evaluate.pictures={tmp_path / 'mine'}"
    _, page = show(f"models:/{UPSCALES}/1", f"models:/{UPSCALES}/2", named)
    high = torch.from_numpy(waves.astype(np.uint8)).permute(2, 0, 1)
    low = bicubic_downsample(high, 2)
    made = [high, *(g.converted(low) for g in generators(place, UPSCALES)), enlarged(low, 2)]
    found = dict(figures(page))
    for title, whole in zip(
        ("Original", "version 1", "version 2", "Input, 1/2 of each side"), made, strict=True
    ):
        middle = whole[:, 55:95]  # the largest square that is in all of them
        assert torch.equal(found[title][:, :, :40], middle), title
    assert f"1 of the pictures in {tmp_path / 'mine'}" in page


def test_both_translate_the_same_pictures_in_both_directions(place: Path, show: Show) -> None:
    """The newer version's data are not in the workspace: they are those of the older one."""
    _, page = show(f"models:/{TRANSLATES}/2", f"models:/{TRANSLATES}/1")
    one, two = generators(place, TRANSLATES)
    expected = []
    for source in DOMAINS:
        images, to = held_out(place, TRANSLATES, source), "B" if source == "A" else "A"
        expected += [
            (f"Input, of {source}", images),
            ("version 2", [two.converted(image, to) for image in images]),
            ("version 1", [one.converted(image, to) for image in images]),
        ]
    assert_shows(page, expected, 4)
    assert re.findall("<h3>(.*)</h3>", page) == ["From A to B", "From B to A"]
    assert "Pictures of each domain that the data of version 1 hold out from training" in page


def test_without_their_data_the_grids_of_the_runs_are_shown(
    place: Path, show: Show, tmp_path: Path
) -> None:
    shards = place / "workspace" / "shards"
    shutil.move(shards, tmp_path / "shards")
    try:
        for recipe, remedy in ((UPSCALES, "--set evaluate.pictures=FOLDER"), (TRANSLATES, "")):
            _, page = show(f"models:/{recipe}/1", f"models:/{recipe}/2")
            assert [title for title, _ in figures(page)] == ["version 1", "version 2"]
            assert "The newest grid that each run has drawn, of its own data." in page
            assert ("evaluate.pictures" in page) == bool(remedy) and remedy in page
    finally:
        shutil.move(tmp_path / "shards", shards)


def test_versions_of_two_tasks_are_told_apart(show: Show) -> None:
    said, page = show(f"models:/{UPSCALES}/1", f"models:/{TRANSLATES}/2")
    sentence = (
        "Scores cannot be compared: the two do different things, for srgan-photos-x2 1 upscales "
        "pictures and cyclegan-emoji-32 2 translates pictures."
    )
    assert said.startswith(sentence) and sentence in page
    assert "The newest grid that each run has drawn, of its own data.</p>" in page
