"""`gan-train import`: published StyleGAN2 networks become a folder to generate from and train on.

The file is read as data (`gan_train.published`), and none of it is executed.
"""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.arguments import add_command, add_overrides

if TYPE_CHECKING:
    from gan_train.adversary import ImageShape
    from gan_train.config import Config
    from gan_train.published.stylegan2 import Published

RECIPE = "recipe.yaml"
_SOURCE = "images"  # the recipe's source of images, until the user names a real one


def add(commands: Any) -> None:
    """Add the command to a parser's list."""
    parser = add_command(
        commands,
        "import",
        _import,
        "bring published StyleGAN2 networks in, as a folder to generate from and to train on",
        "  gan-train import ffhq.pkl --out faces\n"
        "  gan-train generate faces --seeds 0-63 --truncation 0.7 --out grid.png\n"
        f"  gan-train run faces/{RECIPE} --set data.source=my-pictures     train on from there\n\n"
        "The file is read without executing anything of it. Its terms of use go on to apply.",
    )
    parser.add_argument("file", type=Path, help="a .pkl of StyleGAN2-ADA, or a .safetensors")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--name", help="of the recipe and the model; default: the file's")
    parser.add_argument("--classes", metavar="A,B,C", help="names of the classes; default: 0,1,2")
    parser.add_argument(
        "--register", action="store_true", help="also as a version of a registered model"
    )
    add_overrides(parser)


def _import(given: argparse.Namespace) -> int:
    from gan_train import recipes
    from gan_train.errors import UserError
    from gan_train.files.digests import sha256_of

    if given.out.exists():
        raise UserError(f"--out {given.out} is there already: name another folder, or delete it")
    from gan_train.published import stylegan2

    published = stylegan2.load(given.file)
    names = None if given.classes is None else tuple(given.classes.split(","))
    shape = published.image_shape(names)
    name = given.name or default_name(given.file)
    config = _configuration(published, name, given.out, given.overrides)
    if given.register:
        from pipelines.cli.loading import ready
        from pipelines.registry import versions

        versions.champion(ready(config))  # fails early if the server is away
    write(published, shape, config, given.out)
    print(f"networks    {described(published)}")
    print(f"folder      {given.out}")
    print(f"recipe      {given.out / RECIPE}: say what to train on, --set data.source=...")
    if given.register:
        digest = sha256_of(given.file)
        version, page = versions.register_import(
            recipes.with_absolute_paths(config), given.out, given.file.name, digest
        )
        print(f"registered  {versions.model_name(config)} version {version}, without a score")
        print(page)
    return 0


def default_name(file: Path) -> str:
    """The name of a recipe, made from the name of a file."""
    return re.sub("[^A-Za-z0-9._-]+", "-", file.stem).lstrip("._-") or "imported"


def write(published: Published, shape: ImageShape, config: Config, out: Path) -> None:
    """Write the networks to the folder `out`, with the recipe that trains them further.

    Raises UserError if the recipe does not build these networks, and then leaves no `out`.
    """
    from gan_train import recipes
    from gan_train.errors import UserError
    from gan_train.files.atomic import write_aside
    from gan_train.runs import warm_start
    from gan_train.runs.checkpoint import save_start
    from gan_train.training.moving_average import AveragedWeights

    adversary = config.family.build(shape, config.train.batch)
    averaged = AveragedWeights(adversary)
    given = {f"generator.{key}": value for key, value in published.generator.items()}
    given |= {f"discriminator.{key}": value for key, value in published.discriminator.items()}
    mean = {f"generator.{key}": value for key, value in published.averaged.items()}
    pairs = ((warm_start.networks(adversary), given), (averaged.state_dict(), mean))
    for own, found in pairs:
        if (first := warm_start.difference(own, found)) is not None:
            raise UserError(
                f"these networks cannot be imported: {first}. They are of a variant that this "
                "project does not have, or a --set of the family does not fit"
            )
        warm_start.take(own, found)
    save_start(out, adversary, averaged.state_dict(), config)
    head = (
        "# Trains the imported networks on: set data.source. Rates, R1 and augmentation are\n"
        "# StyleGAN2-ADA's automatic preset for one GPU and few pictures; with another\n"
        "# train.batch, change family.r1_gamma in inverse proportion.\n"
    )
    write_aside(out / RECIPE, (head + recipes.dump(config)).encode())


def _configuration(published: Published, name: str, out: Path, overrides: list[str]) -> Config:
    """The configuration that trains these networks; the user must still name a source."""
    from gan_train import recipes

    a = published.architecture
    batch = _batch(a.resolution, published.settings.mbstd_group)
    tree = {
        "name": name,
        "data": {
            "source": _SOURCE,
            "resolution": a.resolution,
            "colour": "grey" if a.image_channels == 1 else "rgb",
            "classes": "folder" if a.classes else "none",
        },
        "family": published.family() | _regularisers(a.resolution, batch),
        "train": {
            "start_from": str(out.absolute()),
            "batch": batch,
            "ema_kimg": batch * 10 / 32,
            # a ramp would forget the published average within the first steps
            "ema_ramp": None,
        },
    }
    return recipes.check(tree, overrides)


def _batch(resolution: int, group: int) -> int:
    """The global batch of StyleGAN2-ADA's automatic preset on one GPU (Karras et al. 2020, arXiv
    2006.06676, appendix C), rounded up so that the groups of the minibatch deviation and of the
    path lengths fit in."""
    grain = math.lcm(group, 2)
    return grain * math.ceil(min(4096 // resolution, 32) / grain)


def _regularisers(resolution: int, batch: int) -> dict[str, Any]:
    """The regularisers of StyleGAN2-ADA's automatic preset, for a few thousand images. Gamma is in
    inverse proportion to the batch."""
    return {
        "r1_gamma": round(0.0002 * resolution**2 / batch, 6),
        "lr": 0.002 if resolution >= 1024 else 0.0025,
        "augment": "ada",
    }


def described(published: Published) -> str:
    """The architecture in one line of text."""
    a = published.architecture
    count = sum(t.numel() for t in published.generator.values())
    return (
        f"StyleGAN2, {a.resolution} px, {'grey' if a.image_channels == 1 else 'rgb'}, "
        f"{a.classes or 'no'} classes, z {a.z_dim}, w {a.w_dim}, {a.mapping_layers} mapping "
        f"layers, G of {count / 1e6:.2f} M numbers"
    )
