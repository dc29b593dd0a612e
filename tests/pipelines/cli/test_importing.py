"""`gan-train import`: published networks become a folder that generates, registers and trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from gan_train import recipes
from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.families.stylegan.build import StyleGANConfig
from gan_train.families.stylegan.family import StyleGAN
from gan_train.inference import Generator
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import find_damage
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.trainer import Trainer
from pipelines.cli import importing
from pipelines.cli.main import main
from pipelines.registry import versions
from pipelines.registry.tracking import connect
from tests.unit.published.streams import GOLDEN, golden, network, published


def expected(name: str) -> torch.Tensor:
    """A tensor of the reference file."""
    with safe_open(GOLDEN, "pt") as file:
        return file.get_tensor(name)


@pytest.fixture(params=["pickle", "safetensors"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The reference networks as either kind of file."""
    if request.param == "safetensors":
        return GOLDEN
    path = tmp_path / "published networks.pkl"
    path.write_bytes(published(golden()))
    return path


def test_imported_networks_compute_what_the_published_ones_do(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "faces"
    assert main(["import", str(file), "--out", str(out), "--name", "faces"]) == 0
    text = capsys.readouterr().out
    assert "StyleGAN2, 32 px, rgb, no classes, z 64, w 64, 8 mapping layers" in text

    generator = Generator.load(out)
    assert (generator.family, generator.z_dim) == ("stylegan", 64)
    adversary = generator.adversary
    assert isinstance(adversary, StyleGAN)
    with torch.no_grad():
        z = expected("in.z")
        # float32 with other orders of summation; images have a deviation of about 1
        for name, image in (
            ("out.image_const_noise", adversary.sample(z, None)),
            ("out.w", adversary.styles(z, None)),
            ("out.w_psi0.7", adversary.truncate(adversary.styles(z, None)[:, None], 0.7)[:, 0]),
        ):
            torch.testing.assert_close(image, expected(name), rtol=1e-4, atol=1e-4)
        adversary.load_state_dict(load_file(out / "networks.safetensors"))
        logits = adversary.discriminator(expected("in.real"), None)
        torch.testing.assert_close(logits, expected("out.logits_real")[:, 0], rtol=1e-4, atol=1e-4)

    assert find_damage(out) is None
    assert json.loads((out / "generator.json").read_text())["recipe"] == "faces"


def test_the_folder_generates_from_the_command_line(tmp_path: Path) -> None:
    out, grid = tmp_path / "faces", tmp_path / "grid.png"
    assert main(["import", str(GOLDEN), "--out", str(out)]) == 0
    arguments = ["generate", str(out), "--seeds", "0-3", "--truncation", "0.7"]
    assert main([*arguments, "--out", str(grid)]) == 0
    with Image.open(grid) as image:
        assert image.mode == "RGB" and len(image.getcolors(image.width * image.height) or ()) > 1000


@pytest.mark.parametrize("classes", [0, 3])
def test_the_largest_networks(classes: int, tmp_path: Path) -> None:
    """1024 pixels, of few channels: imported and drawn, judged by their discriminator."""
    file, out, image = tmp_path / "large.pkl", tmp_path / "large", tmp_path / "image.png"
    file.write_bytes(published(network(classes=classes, top=1024)))
    assert main(["import", str(file), "--out", str(out)]) == 0
    assert main(["generate", str(out), "--seeds", "5", "--out", str(image)]) == 0
    with Image.open(image) as picture:
        assert picture.size == (1024, 1024)
        assert len(picture.convert("L").getcolors() or ()) > 20
    adversary = Generator.load(out).adversary
    assert isinstance(adversary, StyleGAN)
    adversary.load_state_dict(load_file(out / "networks.safetensors"))
    label = torch.tensor([0, 2, 1, 1]) if classes else None
    with torch.no_grad():
        logits = adversary.discriminate(adversary.sample(torch.randn(4, 6), label), label)
    assert logits.shape == (4,) and logits.isfinite().all()
    family = recipes.load(str(out / importing.RECIPE)).family
    assert isinstance(family, StyleGANConfig)
    assert family.r1_gamma == pytest.approx(0.0002 * 1024**2 / 4) and family.lr == 0.002
    assert family.truncate_to == ("all" if classes else "class")


def conditional(tmp_path: Path) -> Path:
    path = tmp_path / "letters.pkl"
    parts = network(classes=3)
    parts["G_ema"] = {name: tensor * 0.5 for name, tensor in parts["G"].items()}
    parts["G_ema"]["synthesis.b8.conv0.resample_filter"] *= 2
    path.write_bytes(published(parts))
    return path


def test_classes_and_the_moving_average_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["import", str(conditional(tmp_path)), "--out", str(out), "--classes", "a,b,c"]
    assert main([*arguments, "--set", "train.batch=12"]) == 0
    generator = Generator.load(out)
    assert generator.shape.classes == ("a", "b", "c") and generator.conditional
    name = "generator.synthesis.b8.conv0.weight"
    average = load_file(out / "generator.safetensors")[name]
    assert torch.equal(average, load_file(out / "networks.safetensors")[name] * 0.5)
    config = recipes.load(str(out / importing.RECIPE))
    assert (config.name, config.data.classes, config.data.colour) == ("letters", "folder", "grey")
    assert config.train.batch == 12 and config.train.start_from == str(out)
    assert config.train.ema_ramp is None and config.train.ema_kimg == 10
    assert config.family.augment == "ada"  # type: ignore[union-attr]
    # published truncation draws every class to one mean
    adversary = generator.adversary
    assert isinstance(adversary, StyleGAN)
    ws, label = torch.randn(2, adversary.num_ws, 5), torch.tensor([0, 2])
    drawn = adversary.truncate(ws, 0.7, label=label)
    torch.testing.assert_close(drawn, adversary.truncate(ws, 0.7))


def test_a_recipe_trains_the_imported_networks_on(tmp_path: Path, tiny_source: Path) -> None:
    out = tmp_path / "out"
    assert main(["import", str(conditional(tmp_path)), "--out", str(out)]) == 0
    settings = {
        "data.source": str(tiny_source),
        "data.lanes": 4,
        "data.shard_images": 8,
        "workspace": str(tmp_path),
        "train.batch": 8,
        "train.total_kimg": 0.016,
        "evaluate.metrics": ["diversity"],
        "evaluate.images": 8,
    }
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    config = recipes.load(str(out / importing.RECIPE), overrides)
    shards = shard(config.data, config.workspace)
    run_dir = run_folder.new(config, shards)
    trainer = Trainer(config, Index.load(shards), shards, PlainRuntime(run_dir))
    before = load_file(out / "networks.safetensors")
    trainer.resume()
    state = trainer.adversary.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    trainer.run()
    after = load_file(max((run_dir / "checkpoints").iterdir()) / "networks.safetensors")
    moved = [name for name in before if not torch.equal(after[name], before[name])]
    assert any(name.startswith("generator.") for name in moved)
    # the average is near the published one, which is half of the weights
    averaged = load_file(max((run_dir / "checkpoints").iterdir()) / "generator.safetensors")
    published_average = load_file(out / "generator.safetensors")
    name = "generator.synthesis.b8.conv0.weight"
    assert (averaged[name] - published_average[name]).abs().max() < 0.01
    # two steps: near where it began, far from a random start
    assert (after[name] - before[name]).abs().max() < 0.05


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["absent.pkl", "--out", "new"], "absent.pkl: no such file"),
        ([str(GOLDEN), "--out", "taken"], "--out taken is there already"),
        ([str(GOLDEN), "--out", "new", "--classes", "a"], "names 1 different classes"),
        ([str(GOLDEN), "--out", "new", "--name", "no good"], "name=no good"),
        ([str(GOLDEN), "--out", "new", "--set", "family.z_dim=32"], "mapping.fc0.weight is"),
        (["letters.pkl", "--out", "new"], "cannot be imported"),
    ],
)
def test_mistakes_are_told_and_leave_no_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    what: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").mkdir()
    Path("letters.pkl").write_bytes(b"cos\nsystem\n(Vtouch SPRUNG\ntR.")
    assert main(["import", *arguments]) == 2
    assert what in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["letters.pkl", "taken"]


def test_names_are_made_of_file_names() -> None:
    for file, name in (
        ("ffhq-1024.pkl", "ffhq-1024"),
        ("my faces (best).pkl", "my-faces-best-"),
        ("_x.pkl", "x"),
        ("é.pkl", "imported"),
    ):
        assert importing.default_name(Path(file)) == name


@pytest.mark.slow
def test_an_import_is_registered_without_score_and_alias(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, workspace = tmp_path / "faces", tmp_path / "workspace"
    arguments = ["import", str(GOLDEN), "--out", str(out), "--name", "faces", "--register"]
    assert main([*arguments, "--set", f"workspace={workspace}"]) == 0
    assert "registered  stylegan-faces version 1, without a score" in capsys.readouterr().out

    config = recipes.load(str(out / importing.RECIPE))
    found = connect(config).get_model_version("stylegan-faces", "1")
    assert found.aliases == [] and "score" not in found.tags
    assert found.tags["imported_from"] == GOLDEN.name
    assert versions.champion(config) is None
    folder = versions.download(config, "1")
    name = "generator.safetensors"
    assert (folder / name).read_bytes() == (out / name).read_bytes()
    served_by_hand(config)


def served_by_hand(config: Config) -> None:
    """A version without a score is champion only if somebody insists."""
    with pytest.raises(UserError, match="no number to compare"):
        versions.promote(config, 1)
    assert versions.promote(config, 1, force=True).alias == "champion"
