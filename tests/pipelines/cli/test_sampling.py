"""The commands for trained generators, as they are typed: with styles and without, from a folder
and from the registry."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from gan_train import recipes
from gan_train.adversary import Clock, ImageShape
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.files.atomic import write_json
from gan_train.files.digests import sha256_of
from gan_train.inference import Generator
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import MANIFEST, save_generator
from gan_train.sampling.seeds import seeds
from pipelines.cli.main import main
from pipelines.registry import versions
from tests.pipelines import registry_runs
from tests.training import tiny_config

CLASSES = ("blue", "green", "red")
STYLES = {
    "name": "stylegan",
    "conditional": True,
    "z_dim": 8,
    "w_dim": 8,
    "mapping_layers": 2,
    "channel_base": 64,
    "channel_max": 8,
    "mbstd_group": 2,
}


def untrained(config: Config, run_dir: Path) -> Path:
    """The checkpoint of a run that was never trained, for images of 8 px in three classes."""
    folder = run_dir / "checkpoints" / "000000001000"
    folder.mkdir(parents=True)
    (run_dir / run_folder.CONFIG).write_text(recipes.dump(config), encoding="utf-8")
    shape = ImageShape(1 if config.data.colour == "grey" else 3, 8, CLASSES)
    torch.manual_seed(0)
    adversary = config.family.build(shape, config.train.batch)
    state = adversary.generator.state_dict()
    weights = {f"generator.{name}": value for name, value in state.items()}
    save_generator(folder, weights, config, shape, Clock(100, 10**6))
    return folder


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A checkpoint of a family without styles."""
    return untrained(tiny_config(Path("source"), tmp_path), tmp_path / "train" / "tiny-1")


@pytest.fixture
def styled(tmp_path: Path) -> Path:
    """A checkpoint of a family with styles: 8 px, grey, 4 layers."""
    config = tiny_config(Path("source"), tmp_path)
    tree = config.model_dump() | {"family": STYLES}
    return untrained(Config.model_validate(tree), tmp_path / "train" / "styles-1")


def done(*arguments: Any) -> bool:
    return main([str(argument) for argument in arguments]) == 0


def test_help_names_the_commands_and_each_shows_an_example(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    everything = capsys.readouterr().out
    for name in ("generate", "mix", "interpolate", "project"):
        assert re.search(rf"^    {name}\s", everything, re.MULTILINE)
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        assert f"\n  gan-train {name} " in capsys.readouterr().out


def test_seeds() -> None:
    assert seeds("0-3,7,9-9") == [0, 1, 2, 3, 7, 9]
    with pytest.raises(UserError, match="--rows 5-3: holds no number"):
        seeds("5-3", "--rows")
    with pytest.raises(UserError, match="at most 9223372036854775807"):
        seeds(f"{2**63}")


def test_generate_writes_a_grid_or_single_images(plain: Path, tmp_path: Path) -> None:
    grid, folder = tmp_path / "grid.png", tmp_path / "images"
    assert done("generate", plain, "--seeds", "0-3", "--out", grid)
    with Image.open(grid) as picture:
        assert picture.size == (128, 128)  # 2 x 2 of 8 px, enlarged to 64
    command = ["generate", plain, "--class", "red", "--seeds", "5,6", "--out", folder]
    assert done(*command)
    assert sorted(path.name for path in folder.iterdir()) == ["5.png", "6.png"]
    first = (folder / "5.png").read_bytes()
    assert done(*command) and (folder / "5.png").read_bytes() == first


def test_a_damaged_checkpoint_makes_no_images(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(plain / "generator.safetensors", plain / "networks.safetensors")
    write_json(plain / MANIFEST, {path.name: sha256_of(path) for path in plain.iterdir()})
    command = ["generate", plain, "--seeds", "0-3", "--out", tmp_path / "grid.png"]
    assert done(*command)
    weights = bytearray((plain / "generator.safetensors").read_bytes())
    weights[-1] ^= 1
    (plain / "generator.safetensors").write_bytes(weights)
    capsys.readouterr()
    assert not done(*command)
    assert "generator.safetensors is not what was written" in capsys.readouterr().err


def test_generate_with_styles(styled: Path, tmp_path: Path) -> None:
    """Truncation, cutoff and noise all change something, or nothing when they should not."""

    def drawn(*options: Any) -> np.ndarray:
        out = tmp_path / "images"
        assert done("generate", styled, "--seeds", "0-5", "--class", "red", "--out", out, *options)
        return np.stack([np.asarray(Image.open(out / f"{seed}.png")) for seed in range(6)])

    as_it_is = drawn()
    generator = Generator.load(styled)
    served = generator.images(generator.latents(range(6)), torch.full((6,), 2))
    assert np.array_equal(as_it_is, served[:, 0].numpy())
    assert np.array_equal(drawn("--noise", "const"), as_it_is)
    half = drawn("--truncation", 0.5)
    assert not np.array_equal(half, as_it_is)
    assert not np.array_equal(drawn("--truncation", 0.5, "--cutoff", 2), half)
    assert np.array_equal(drawn("--truncation", 0.5, "--cutoff", 4), half)


def test_mix(styled: Path, tmp_path: Path) -> None:
    out = tmp_path / "mix.png"
    options = ["--rows", "0,1", "--columns", "5-7", "--class", "red", "--out", out]
    assert done("mix", styled, "--layers", "0-3", *options)
    sheet = np.asarray(Image.open(out))
    side = sheet.shape[0] // 3
    assert sheet.shape == (3 * side, 4 * side)
    # all layers from the column: every row looks like the top one
    rows = sheet.reshape(3, side, 4 * side)[:, :, side:]
    assert np.array_equal(rows[1], rows[0]) and np.array_equal(rows[2], rows[0])
    assert done("mix", styled, "--layers", "0-1", *options)
    rows = np.asarray(Image.open(out)).reshape(3, side, 4 * side)[:, :, side:]
    assert not np.array_equal(rows[1], rows[0]) and not np.array_equal(rows[1], rows[2])


def test_interpolate(
    plain: Path, styled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "walk.gif"
    options = ["--seeds", "1,2,3", "--class", "red,blue", "--frames", 4, "--loop", "--out", out]
    assert done("interpolate", styled, *options)
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as gif:
        assert gif.n_frames == 12 and gif.info["loop"] == 0
    folder = tmp_path / "walk"
    assert done(
        *("interpolate", plain, "--seeds", "1,2", "--class", "red"),
        *("--frames", 3, "--out", folder),
    )
    generator = Generator.load(plain)
    last = generator.images(generator.latents([2]), torch.tensor([2]))
    assert np.array_equal(np.asarray(Image.open(folder / "frame-00003.png")), last[0, 0].numpy())


def test_project_and_draw_again(
    styled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, out = tmp_path / "picture.jpg", tmp_path / "me.png"
    Image.radial_gradient("L").convert("RGB").save(picture)
    assert done("project", styled, picture, "--steps", 12, "--class", "red", "--out", out)
    said = capsys.readouterr().out
    assert said.startswith("distance ") and "(efficientnet_lite0)" in said
    assert f"pictures    {out}\n" in said and f"w           {tmp_path / 'me.safetensors'}\n" in said
    words = said.split()
    assert float(words[words.index("style,") + 1]) < float(words[1])
    assert load_file(tmp_path / "me.safetensors")["w"].shape == (1, 8)
    again = tmp_path / "again"
    assert done("generate", styled, "--w", tmp_path / "me.safetensors", "--out", again)
    right = np.asarray(Image.open(out))[::8, ::8][:, 8:]
    assert np.array_equal(right, np.asarray(Image.open(again / "0.png")))


def test_where_project_finds_its_settings(
    styled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the recipe that is named, else beside the generator, else in its run; a folder that has
    come from elsewhere needs one."""
    picture, out = tmp_path / "wide.png", tmp_path / "me.png"
    Image.radial_gradient("L").crop((0, 0, 256, 128)).save(picture)
    alone = tmp_path / "alone"
    shutil.copytree(styled, alone)

    def read(folder: Path, *options: Any) -> bytes:
        command = ["project", folder, picture, "--steps", 1, "--out", out, *options]
        assert done(*command), capsys.readouterr().err
        return np.asarray(Image.open(out))[:, :64].tobytes()

    centre, padded = read(styled), read(styled, "--set", "data.crop=pad")
    assert centre != padded
    assert main(["project", str(alone), str(picture)]) == 2
    assert "--recipe RECIPE" in capsys.readouterr().err
    tree = tiny_config(Path("source"), tmp_path, data__crop="pad")
    (tmp_path / "padded.yaml").write_text(recipes.dump(tree), encoding="utf-8")
    assert read(alone, "--recipe", tmp_path / "padded.yaml") == padded
    shutil.copy(tmp_path / "padded.yaml", alone / "recipe.yaml")
    assert read(alone) == padded
    assert read(alone, "--set", "data.crop=centre") == centre


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("generate PLAIN --class pink", "--class pink: allowed: blue, green, red"),
        ("generate PLAIN --truncation 3", "allowed: -2 to 2"),
        ("generate PLAIN --out grid.jpg", "allowed: a name ending in .png"),
        ("generate PLAIN --noise none", "--noise none needs a family with styles"),
        ("generate PLAIN --truncation .5 --cutoff 2", "--cutoff 2 needs a family with styles"),
        ("generate PLAIN --w w.safetensors", "--w needs a family with styles"),
        ("generate PLAIN --version 3 --set seed=1", "--version and --set: of use for a registered"),
        ("generate STYLED --w w.safetensors --class red", "--w takes the place of --seeds and"),
        ("generate STYLED --w w.safetensors", "--w w.safetensors: no such file"),
        ("generate demo --seeds 1-x", "--seeds 1-x: allowed: numbers and ranges"),
        ("mix PLAIN", "mix needs a family with styles, such as stylegan; this generator is progan"),
        ("mix STYLED --layers fine", "--layers fine: allowed: coarse, or numbers and ranges"),
        ("mix STYLED --rows 1-x", "--rows 1-x: allowed"),
        ("interpolate PLAIN --space w --class red", "--space w needs a family with styles"),
        ("interpolate PLAIN", "--class: name one of blue, green, red"),
        ("interpolate STYLED --class red --out walk.mp4", "needs the program ffmpeg"),
        ("project PLAIN picture.png", "picture.png: no such picture"),
        ("project STYLED picture.png --out me.jpg", "me.jpg: allowed: a name ending in .png"),
        ("project STYLED picture.png --set data.crop=round", "data.crop"),
        ("project STYLED picture.png --recipe nowhere", "nowhere: no such recipe"),
    ],
)
def test_a_mistake_exits_2_with_one_message(
    command: str,
    message: str,
    plain: Path,
    styled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    monkeypatch.setenv("PATH", str(empty))
    named = {"PLAIN": str(plain), "STYLED": str(styled)}
    assert main([named.get(word, word) for word in command.split()]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("gan-train: ") and message in said.err
    assert "Traceback" not in said.err and said.out == ""
    assert not list(empty.iterdir())


@pytest.mark.slow
def test_a_recipe_stands_for_its_registered_model(tmp_path: Path) -> None:
    config = registry_runs.config(tmp_path / "workspace")
    run = registry_runs.Run(config, registry_runs.index())
    folder = run.checkpoint(64_000, 50.0)
    versions.register_best(config, run.folder, run.index, {})
    recipe, drawn = tmp_path / "tiny.yaml", []
    recipe.write_text(recipes.dump(config), encoding="utf-8")
    for model, options in ((recipe, []), (recipe, ["--version", "1"]), (folder, [])):
        out = tmp_path / f"{len(drawn)}.png"
        assert done("generate", model, "--seeds", "0-3", "--out", out, *options)
        drawn.append(np.asarray(Image.open(out)).tobytes())
    assert drawn[0] == drawn[1] == drawn[2]
