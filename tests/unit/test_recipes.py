"""Recipes: overrides, messages that teach, and that every shipped recipe is valid."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gan_train import recipes
from gan_train.errors import UserError


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        recipes.load("demo", overrides)
    return str(caught.value)


def test_overrides_are_read_as_yaml() -> None:
    config = recipes.load(
        "demo",
        [
            "train.batch=64",
            "data.only_classes=[A, B]",
            "evaluate.weights=null",
            "train.ema_kimg=5e-1",
        ],
    )
    assert config.train.batch == 64
    assert config.data.only_classes == ("A", "B")
    assert config.evaluate.weights is None
    assert config.train.ema_kimg == 0.5


def test_no_and_off_are_words_not_false() -> None:
    """YAML 1.1 reads `no` as false, which is none of `auto`, `yes`, `no`."""
    assert recipes.load("demo", ["cluster.gpu=no"]).cluster.gpu == "no"
    assert recipes.load("demo", ["data.mirror=true"]).data.mirror is True


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.bacth=64", "train.bacth=64: unknown key; did you mean train.batch?"),
        ("trian.batch=64", "trian: unknown key; did you mean train?"),
        ("keep_checkpoints=3", "unknown key; did you mean train.keep_checkpoints?"),
        ("train.batch=0", "train.batch=0: allowed: a whole number at least 1"),
        ("train.batch=many", "train.batch=many: allowed: a whole number"),
        ("data.max_bad_fraction=2", "allowed: a number at least 0 at most 1"),
        ("data.crop=center", "allowed: centre, pad, stretch"),
        ("data.crop=center", "did you mean centre?"),
        ("evaluate.metrics=[kid, fid]", "evaluate.metrics.1=fid: allowed: a list of frechet, kid"),
        ("data.resolution=24", "data.resolution is 24; allowed: a power of two"),
        ("family.name=biggan", "family.name=biggan: allowed: cgan, cyclegan, dcgan, "),
        ("family.name=stylgan", "did you mean stylegan?"),
        ("family.name=stylegan", "unknown key"),
        ("family.generation=2", "family.generation=2: unknown key; allowed here: batch, betas"),
        ("train.batch", "expected key=value"),
        ("name.x=1", "name is a value (demo)"),
        ("train.batch={a: 1, a: 2}", "`a` is given twice"),
    ],
)
def test_a_mistake_is_named_with_the_remedy(override: str, message: str) -> None:
    assert message in refusal(override)


def test_jobs_need_a_folder() -> None:
    message = "gan-train submit RECIPE --address http://h:8265"
    assert message in refusal("cluster.jobs=http://h:8265", "workspace=s3://bucket/team")


def test_all_mistakes_come_at_once() -> None:
    text = refusal("train.bacth=64", "data.crop=zoom")
    assert "2 mistakes" in text and "train.bacth" in text and "data.crop" in text


def test_a_family_needs_a_name() -> None:
    tree = {"name": "x", "data": {"source": "x", "resolution": 8}, "family": {"lr": 1}}
    with pytest.raises(UserError, match=r"family\.name: allowed: cgan, cyclegan, dcgan, "):
        recipes.check(tree)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match=r"data\.source: missing; allowed: a text \(A folder, zip"):
        recipes.check({"name": "x", "data": {"resolution": 8}, "family": {"name": "progan"}})


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"dmo: no such recipe; did you mean demo\?"):
        recipes.find("dmo")


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    """Plain YAML would silently keep the second one."""
    text = recipes.find("demo").read_text(encoding="utf-8")
    (tmp_path / "twice.yaml").write_text(text + "\nname: again\n", encoding="utf-8")
    with pytest.raises(UserError, match="`name` is given twice"):
        recipes.load(str(tmp_path / "twice.yaml"))


def test_a_dump_reads_back_the_same() -> None:
    config = recipes.load("demo", ["train.batch=48"])
    assert recipes.check(yaml.safe_load(recipes.dump(config))) == config


def test_anchoring_makes_paths_absolute_and_nothing_else() -> None:
    config = recipes.load("demo", ["evaluate.weights=https://example.org/w.pt"])
    absolute = recipes.with_absolute_paths(config)
    assert absolute.workspace.is_absolute() and Path(absolute.data.source).is_absolute()
    assert absolute.evaluate == config.evaluate
    assert recipes.with_absolute_paths(absolute) == absolute
    local = recipes.load("demo", ["evaluate.weights=w.pt", "evaluate.perceptual_weights=v.pt"])
    found = recipes.with_absolute_paths(local).evaluate
    assert found.weights == str(Path("w.pt").absolute())
    assert found.perceptual_weights == str(Path("v.pt").absolute())
    begun = recipes.load("demo", ["train.start_from=runs/import", "workspace=~/runs"])
    assert recipes.with_absolute_paths(begun).train.start_from == str(
        Path("runs/import").absolute()
    )
    assert recipes.with_absolute_paths(begun).workspace == Path.home() / "runs"


def test_anchoring_reaches_every_path_of_pictures() -> None:
    more = ["family.content=vgg19", "family.content_weights=vgg.pth", "evaluate.pictures=Set5"]
    upscales = recipes.with_absolute_paths(recipes.load("srgan-photos-x4", more))
    assert upscales.family.content_weights == str(Path("vgg.pth").absolute())
    assert upscales.evaluate.pictures == str(Path("Set5").absolute())
    second = recipes.with_absolute_paths(recipes.load("cyclegan-emoji-32")).data.second
    assert second is not None and Path(str(second.source)).is_absolute()
    one_source = recipes.load("cyclegan-horse2zebra-128")
    assert recipes.with_absolute_paths(one_source).data.second == one_source.data.second


@pytest.mark.parametrize("path", sorted(recipes.SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid_and_named_like_their_file(path: Path) -> None:
    assert recipes.load(str(path)).name == path.stem


def test_a_change_is_checked_like_a_recipe() -> None:
    config = recipes.load("demo")
    changed = recipes.change(config, {"train.batch": 32, "family": config.family})
    assert changed.train.batch == 32
    assert recipes.change(changed, {"train.batch": config.train.batch}) == config
    with pytest.raises(UserError, match=r"train\.batch=0: allowed: a whole number at least 1"):
        recipes.change(config, {"train.batch": 0})
    with pytest.raises(UserError, match=r"train\.bacth=4: unknown key; did you mean train\.batch"):
        recipes.change(config, {"train.bacth": 4})


@pytest.mark.parametrize("recipe", sorted(path.stem for path in recipes.SHIPPED.glob("*.yaml")))
def test_a_configuration_that_is_changed_back_is_the_same(recipe: str) -> None:
    config = recipes.load(recipe)
    assert recipes.change(config, {}) == config
