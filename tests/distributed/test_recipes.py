"""What every recipe gets by existing: two steps, an exact resume, one against two workers, and the
way into the registry and out of it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from gan_train import recipes
from gan_train.adversary import ImageShape
from gan_train.config import Config
from gan_train.data.images import open_picture
from gan_train.images.pixels import to_float, to_uint8
from gan_train.inference import Generator
from gan_train.runs.ledger import compare, of_checkpoint, read_entries
from gan_train.runs.runtime import PlainRuntime
from gan_train.sampling.export import Exported, export
from pipelines.registry import logged_model
from pipelines.registry.model_interface import interface_of
from tests.training import assert_same_bits, newest, run, run_workers, weights

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning"),  # MLflow's own
]
NARROW = {
    "cgan": ["family.joint_width=20", "family.image_units=8", "family.class_units=8"],
    "cyclegan": [
        *("family.width=4", "family.blocks=2", "family.discriminator_width=4"),
        *("family.pool_size=3", "train.batch=4"),  # small enough that fakes are exchanged
    ],
    "dcgan": ["family.channels=4"],
    "lapgan": ["family.units_g=20", "family.units_d=20"],
    "lsgan": ["family.channels=4"],
    "vanilla": ["family.generator_widths=[20, 30]", "family.discriminator_widths=[20, 8]"],
    "srgan": [
        *("family.blocks=2", "family.width=8", "family.high_width=4", "family.kernel=3"),
        *("family.discriminator_width=2", "data.held_out=0.25"),
        "family.pretrain_kimg=0.016",  # the first step alone: the second one is against D
    ],
    "progan": ["family.fmap_max=16", "family.mbstd_group=2"],
    "stylegan": ["family.channel_max=16", "family.channels={}", "family.mbstd_group=2"],
}
"""Overrides that make a family's widest networks small and its smallest batch divisible: layout,
losses and schedule stay."""
SIDE = {"progan": 64}
"""The most pixels of a family, where they are not 32."""
EXPORTED = {
    *("cgan-glyphs", "cyclegan-emoji-32", "dcgan-glyphs", "demo", "lapgan-glyphs", "lsgan-glyphs"),
    *("srgan-photos-x4", "stylegan-glyphs", "stylegan2-glyphs", "vanilla-glyphs"),
}
"""A recipe of each kind of networks, whose ONNX file is compared."""
RECIPES = sorted(path.stem for path in recipes.SHIPPED.glob("*.yaml"))


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    """The recipe on a few smooth pictures, for two steps, at 32 pixels or `SIDE` at most: where a
    family grows, the first steps are at the lowest level, and all levels up to there are built.
    In float32: bf16, which many processors only imitate, is shown by tiny runs in tests/faults."""
    config = recipes.load(request.param)
    size = min(config.data.resolution, SIDE.get(config.family.name, 32))
    y, x = np.mgrid[:size, :size] / size
    for number in range(24):
        folder = tmp_path / "source" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        waves = [np.sin(6 * (x * (number + 1) + y * c)) for c in range(3)]
        pixels = np.stack(waves, axis=-1) * 127 + 128
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png", compress_level=1)
    second = config.data.second
    domains = [f"data.second.source={tmp_path / 'source'}", "data.second.only_classes=[]"]
    return steps(
        recipes.load(
            request.param,
            [
                *(domains if second is not None else []),
                f"workspace={tmp_path}",
                f"data.source={tmp_path / 'source'}",
                f"data.resolution={size}",
                "data.only_classes=[]",
                "data.loader_workers=0",
                "data.cache_mb=512",
                "train.precision=float32",
                "evaluate.images=8",
                "evaluate.metrics=[diversity]",
                *NARROW[config.family.name],
            ],
        ),
        2,
    )


def steps(config: Config, count: int, precision: str | None = None) -> Config:
    """The same configuration, ended after `count` steps."""
    channels = 1 if config.data.colour == "grey" else 3
    shape = ImageShape(channels, config.data.resolution, ("a", "b"))
    batch = config.family.build(shape, config.train.batch).stages()[0].batch
    changed: dict[str, Any] = {"train.total_kimg": count * batch / 1000}
    if precision:
        changed["train.precision"] = precision
    return recipes.change(config, changed)


def _train(config: Config, run_dir: Path) -> None:
    run(config, run_dir, PlainRuntime(run_dir))


def test_recipe(recipe: Config, tmp_path: Path) -> None:
    whole = run(recipe, tmp_path / "whole")

    # resumed after one of its two steps: the same bits
    halves = run(steps(recipe, 1), tmp_path / "halves")
    run(recipe, halves)
    for name in ("networks", "generator", "optimizers"):
        assert_same_bits(weights(halves, name), weights(whole, name))
    entries = read_entries(whole)
    saved = of_checkpoint(newest(whole))  # what was entered in memory, from the files
    assert saved.items() <= [e for e in entries if e["kind"] == "checkpoint"][-1].items()
    same, parting = compare(entries, read_entries(halves))
    assert parting is None and same >= 2

    # two workers: the same training (float64, where sums of another order do not show)
    precise = steps(recipe, 2, "float64")
    one = weights(run(precise, tmp_path / "one"))
    run_workers(2, tmp_path, _train, precise, tmp_path / "two")
    for name, value in weights(tmp_path / "two").items():
        torch.testing.assert_close(value, one[name], rtol=0, atol=1e-10, msg=name)

    # what was saved makes pictures, and the same ones once the registry has it
    generator = Generator.load(newest(whole))
    import mlflow.pyfunc
    from mlflow.models import Model

    logged_model.save(newest(whole), tmp_path / "model", Model())
    example = interface_of(generator).example(generator)
    served = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict([example])
    assert np.array_equal(picture(served[0]), made(generator, example))

    # and other libraries make them, too
    if recipe.name in EXPORTED:
        for file in export(generator, "onnx", tmp_path / "x.onnx", 1000, {}):
            assert_same_pictures(generator, file)


def assert_same_pictures(generator: Generator, file: Exported) -> None:
    """1,000 latents at once, and three with another truncation; or pictures of two odd sizes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.path, options)
    names = [value.name for value in session.get_inputs()]

    def answer(**inputs: torch.Tensor) -> torch.Tensor:
        (image,) = session.run(["image"], {name: inputs[name].numpy() for name in names})
        return to_uint8(torch.from_numpy(image)).int()

    if generator.task != "generate":
        for height, width in ((19, 22), (32, 45)):
            shown = torch.arange(height * width * 3).view(1, 3, height, width) * 7 % 256
            shown = shown[:, : generator.shape.channels].to(torch.uint8)
            to = file.path.stem[-1] if generator.task == "translate" else None
            ours = generator.converted(shown[0], to).int()
            assert (answer(picture=to_float(shown))[0] - ours).abs().max() <= 1
        return
    assert names[0] == "z" and ("label" in names) == generator.conditional
    for count, truncation in ((1000, 1.0), (3, 0.5 if "truncation" in names else 1.0)):
        inputs = {
            "z": generator.latents(range(count)),
            "label": torch.arange(count) % max(1, len(generator.shape.classes)),
        }
        ours = torch.cat(
            [
                generator.images(*parts, truncation)
                for parts in zip(*(x.split(50) for x in inputs.values()), strict=True)
            ]
        )
        theirs = answer(**inputs, truncation=torch.full((count,), truncation))
        assert (theirs - ours.int()).abs().max() <= 1


def made(generator: Generator, request: dict[str, Any]) -> NDArray[np.uint8]:
    """[H, W, C], of latents and the first class, or of a picture."""
    if generator.task == "generate":
        label = torch.tensor([0]) if generator.conditional else None
        images = generator.images(torch.tensor([request["z"]]), label)
        return images[0].permute(1, 2, 0).numpy()
    shown = open_picture(base64.b64decode(request["image"]), generator.shape.channels)
    return generator.converted(shown, request.get("to")).permute(1, 2, 0).numpy()


def picture(served: Any) -> NDArray[np.uint8]:
    """[H, W, C] of what MLflow answers."""
    if isinstance(served, str):
        served = np.asarray(Image.open(io.BytesIO(base64.b64decode(served))))
    return served if served.ndim == 3 else served[:, :, None]
