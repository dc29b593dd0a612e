"""`gan-train generate`, `mix`, `interpolate` and `project`: the uses of a trained generator.

This file reads arguments. The work is done in `gan_train.sampling`, which is imported by the
command that needs it.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gan_train.sampling.seeds import seeds
from pipelines.cli.arguments import add_command, add_overrides

if TYPE_CHECKING:
    from gan_train.config import Config
    from gan_train.inference import Generator
    from gan_train.sampling.painter import Look

_SEEDS = "0-63"
_CHAMPION = "champion"


def add(commands: Any) -> None:
    """Add the sampling commands to a parser's list."""
    generate = add_command(
        commands,
        "generate",
        _generate,
        "draw images from a trained generator",
        "  gan-train generate demo --seeds 0-63 --out grid.png          the champion\n"
        "  gan-train generate demo --version 3 --class A --out a.png\n"
        "  gan-train generate runs/train/.../checkpoints/000000108000 --seeds 1,2,5 --out images/\n"
        "  gan-train generate faces --w projected.safetensors --out again.png",
    )
    add_model(generate)
    generate.add_argument("--seeds", help=f"one image each, as 0-63 or 1,2,5; default: {_SEEDS}")
    generate.add_argument(
        "--w",
        type=Path,
        metavar="FILE",
        help="styles instead of seeds, as `project` writes them; --truncation acts on them, too",
    )
    generate.add_argument(
        "--class", dest="label", metavar="NAME", help="default: all classes in turn"
    )
    _look(generate)
    _out(generate, "grid.png", "a PNG for a grid, or a folder")
    add_overrides(generate)

    mix = add_command(
        commands,
        "mix",
        _mix,
        "give images the styles of others in some layers (families with styles)",
        "  gan-train mix faces --rows 0-3 --columns 10-15 --layers coarse --out poses.png\n\n"
        "On top the images of --columns, at the left those of --rows. Each of the others is the\n"
        "image of its row, but in --layers it has the styles of its column: coarse layers (4 and\n"
        "8 pixels) hold pose and shape, middle ones (16 and 32) features, fine ones colours.",
    )
    add_model(mix)
    mix.add_argument("--rows", default="0-3", help="seeds, as 0-3 or 1,2,5; default: %(default)s")
    mix.add_argument("--columns", default="4-9", help="seeds; default: %(default)s")
    mix.add_argument(
        "--layers",
        default="coarse",
        help="taken from the column: coarse, middle, fine, or numbers as 0-3; default: %(default)s",
    )
    mix.add_argument("--class", dest="label", metavar="NAME", help="default: all classes in turn")
    _look(mix)
    _out(mix, "mix.png", "a PNG")
    add_overrides(mix)

    interpolate = add_command(
        commands,
        "interpolate",
        _interpolate,
        "film the way from image to image",
        "  gan-train interpolate faces --seeds 1,7,3 --loop --out walk.gif\n"
        "  gan-train interpolate letters --seeds 5 --class A,B,C --frames 40 --out letters.mp4\n\n"
        "Every seed's image is passed. The way goes over the sphere of latents z, or along a\n"
        "smooth curve through the styles w, where it may also go from class to class.",
    )
    add_model(interpolate)
    interpolate.add_argument("--seeds", default="0-3", help="to pass; default: %(default)s")
    interpolate.add_argument(
        "--class", dest="label", metavar="NAME[,NAME]", help="one, or, in w, one for each seed"
    )
    interpolate.add_argument(
        "--space", choices=("z", "w"), help="default: w where the family has styles, else z"
    )
    interpolate.add_argument(
        "--frames", type=int, default=30, help="from seed to seed; default: %(default)s"
    )
    interpolate.add_argument(
        "--fps", type=float, default=25, help="frames per second; default: %(default)s"
    )
    interpolate.add_argument(
        "--loop", action="store_true", help="and back to the first; a GIF then repeats"
    )
    _look(interpolate)
    _out(interpolate, "walk.gif", "a .gif, an .mp4 (with the program ffmpeg), or a folder of PNGs")
    add_overrides(interpolate)

    project = add_command(
        commands,
        "project",
        _project,
        "find the style whose image looks like a picture (families with styles)",
        "  gan-train project faces me.jpg --out me.png\n\n"
        "Writes picture and reconstruction side by side, and the style w beside them, here\n"
        "me.safetensors, for `gan-train generate --w`. The picture is cropped and resized as the\n"
        "recipe's `data` settings say, and compared by `evaluate.perceptual`.",
    )
    add_model(project)
    project.add_argument("picture", type=Path, help="an image file")
    project.add_argument(
        "--class", dest="label", metavar="NAME", help="start at its mean; default: that of all"
    )
    project.add_argument("--steps", type=int, default=1000, help="default: %(default)s")
    project.add_argument("--recipe", help="the settings to use; default: those of the model")
    _out(project, "projected.png", "a PNG")
    add_overrides(project)


def add_model(parser: argparse.ArgumentParser, name: str = "model") -> None:
    """Add the arguments that choose a generator: `name`, which is positional or a required option,
    and its version."""
    meaning = (
        "a checkpoint's folder, or a run or recipe whose registered model is meant, or the model "
        "itself as models:/NAME@ALIAS or models:/NAME/VERSION"
    )
    if name.startswith("-"):
        parser.add_argument(name, required=True, help=meaning)
    else:
        parser.add_argument(name, help=meaning)
    parser.add_argument(
        "--version", help=f"of the registered model: a number or an alias; default: {_CHAMPION}"
    )


def _look(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--truncation",
        type=float,
        default=1.0,
        metavar="PSI",
        help="of a family with styles, -2 to 2: below 1 less variety, more typical; 0 the mean; "
        "default: %(default)g",
    )
    parser.add_argument(
        "--cutoff", type=int, metavar="LAYERS", help="truncate the first layers alone; default: all"
    )
    parser.add_argument(
        "--noise",
        choices=("const", "none", "random"),
        help="of a family with styles: as stored (default), none, or new for each seed",
    )


def _out(parser: argparse.ArgumentParser, default: str, what: str) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path(default), help=f"{what}; default: {default}"
    )


# ---- where the generator comes from ------------------------------------------------------------


def _is_checkpoint(model: str) -> bool:
    return (Path(model) / "generator.json").is_file()


def _configuration(given: argparse.Namespace) -> Config:
    """The configuration of a run or recipe whose registered model is meant. For a model's address,
    it says where the registry is, and nothing of the model."""
    from gan_train import recipes
    from gan_train.runs import run_folder
    from pipelines.cli.loading import ready

    if (address := _address(given)) is not None:
        anywhere = recipes.load(str(recipes.SHIPPED / "demo.yaml"), given.overrides)
        return recipes.with_absolute_paths(recipes.change(anywhere, {"registry.model": address[0]}))
    is_run = (Path(given.model) / run_folder.CONFIG).is_file()
    load = run_folder.configuration if is_run else recipes.load
    return ready(load(given.model, given.overrides))


def _address(given: argparse.Namespace) -> tuple[str, str] | None:
    """The name and the version, or the alias, in an address such as `models:/faces@champion`; None
    where the model is named otherwise. Raises UserError for an address that cannot be read."""
    from gan_train.errors import UserError

    if not given.model.startswith("models:"):
        return None
    found = re.fullmatch(r"models:/([^/:'\"@]+)(?:@([^/@]+)|/(\d+))?", given.model, re.ASCII)
    if found is None:
        raise UserError(f"{given.model}: allowed: models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = found.groups()
    if given.version and (alias or number):
        raise UserError(f"{given.model} names a version already: leave out --version")
    return name, alias or number or given.version or _CHAMPION


def _settings(given: argparse.Namespace) -> Config:
    """The configuration that `--recipe` names, or else the model's own: the configuration of its
    run, or the recipe that an import left beside it. Raises UserError when there is none."""
    from gan_train import recipes
    from gan_train.errors import UserError
    from gan_train.runs import run_folder
    from pipelines.cli.importing import RECIPE
    from pipelines.cli.loading import ready

    if given.recipe is None and _address(given) is not None:
        raise UserError(f"{given.model} has no settings of its own: name its --recipe")
    if given.recipe is None and not _is_checkpoint(given.model):
        return _configuration(given)
    beside = Path(given.model) / RECIPE
    if given.recipe is None and not beside.is_file():
        return ready(run_folder.configuration_of(given.model, given.overrides))
    return ready(recipes.load(given.recipe or str(beside), given.overrides))


def _generator(given: argparse.Namespace, takes_settings: bool = False) -> Generator:
    """The generator of a checkpoint or of the registry, on a GPU if there is one.

    `takes_settings` says that the command itself uses `--set`. Raises UserError when there is no
    such generator, and for options that a checkpoint's folder has no use for.
    """
    import torch

    from gan_train.inference import Generator

    folder = folder_of(given, takes_settings)
    return Generator.load(folder, "cuda" if torch.cuda.is_available() else "cpu")


def folder_of(given: argparse.Namespace, takes_settings: bool = False) -> Path:
    """The folder of the generator that is meant, as `_generator` chooses it. Raises UserError where
    it is a damaged checkpoint."""
    from gan_train.errors import UserError
    from gan_train.runs.audit import generator_damage

    registered = registered_model(given, takes_settings)
    if registered is None:
        if damage := generator_damage(Path(given.model).absolute()):
            raise UserError(
                f"{given.model} is damaged: {damage}. Name another checkpoint, or the registered "
                "model of the run"
            )
        return Path(given.model)
    from pipelines.registry import versions

    return versions.download(*registered)


def registered_model(
    given: argparse.Namespace, takes_settings: bool = False
) -> tuple[Config, str] | None:
    """The configuration of the registered model that is meant, and its version or alias; None where
    a checkpoint's folder is meant."""
    from gan_train.errors import UserError

    if _is_checkpoint(given.model):
        idle = ["--version"] if given.version else []
        idle += ["--set"] if given.overrides and not takes_settings else []
        if idle:
            raise UserError(
                f"{' and '.join(idle)}: of use for a registered model alone, and {given.model} is "
                "the folder of a generator: leave it out"
            )
        return None
    address = _address(given)
    return _configuration(given), address[1] if address else given.version or _CHAMPION


def _look_of(given: argparse.Namespace) -> Look:
    from gan_train.sampling.painter import Look

    return Look(given.truncation, given.cutoff, given.noise)


# ---- commands ----------------------------------------------------------------------------------


def _generate(given: argparse.Namespace) -> int:
    from gan_train.errors import UserError

    numbers = seeds(_SEEDS if given.seeds is None else given.seeds)
    if given.w is not None and (given.seeds, given.label) != (None, None):
        raise UserError("--w takes the place of --seeds and --class: leave these out")
    from gan_train.sampling.generate import generate, regenerate

    generator, look = _generator(given), _look_of(given)
    if given.w is not None:
        print(regenerate(generator, given.w, look, given.out))
    else:
        print(generate(generator, numbers, given.label, look, given.out))
    return 0


def _mix(given: argparse.Namespace) -> int:
    rows, columns = seeds(given.rows, "--rows"), seeds(given.columns, "--columns")
    from gan_train.sampling.mixing import mix

    generator, look = _generator(given), _look_of(given)
    print(mix(generator, rows, columns, given.layers, given.label, look, given.out))
    return 0


def _interpolate(given: argparse.Namespace) -> int:
    numbers = seeds(given.seeds)
    from gan_train.sampling.interpolation import Walk, interpolate

    classes = () if given.label is None else tuple(given.label.split(","))
    walk = Walk(tuple(numbers), classes, given.space, given.frames, given.loop)
    print(interpolate(_generator(given), walk, _look_of(given), given.out, given.fps))
    return 0


def _project(given: argparse.Namespace) -> int:
    from gan_train.errors import UserError

    if given.out.suffix.lower() != ".png":
        raise UserError(f"--out {given.out}: allowed: a name ending in .png")
    config = _settings(given)
    from gan_train.files.digests import sha256_of
    from gan_train.metrics.perceptual import build_perceptual
    from gan_train.sampling.projection import picture_for, project, save_projection

    generator = _generator(given, takes_settings=True)
    picture = picture_for(generator, given.picture, config.data)
    perceptual = build_perceptual(
        config.evaluate.perceptual,
        config.evaluate.perceptual_weights,
        config.evaluate.perceptual_sha256,
        config.workspace / "statistics",
        generator.device,
    )
    found = project(generator, picture, perceptual, given.label, given.steps)
    classes = None if given.label is None else [given.label]
    origin = generator.origin("project", classes=classes, source_sha256=sha256_of(given.picture))
    pictures, w = save_projection(found, picture, given.out, origin)
    print(
        f"distance    {found.distance_before:.4g} at the mean style, "
        f"{found.distance_after:.4g} at the end ({perceptual.name})\n"
        f"pictures    {pictures}\n"
        f"w           {w}"
    )
    return 0
