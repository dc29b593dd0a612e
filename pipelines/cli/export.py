"""`gan-train export`: a generator as a file that other libraries run, with the proof that it is the
same.

This file reads arguments; the work is done in `gan_train.sampling.export`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pipelines.cli.arguments import add_command, add_overrides
from pipelines.cli.sampling import add_model, registered_model

_ENDINGS = {
    "onnx": ".onnx",
    "torch": ".pt2",
}  # the library takes seconds to import


def add(commands: Any) -> None:
    """Add the command to a parser's list."""
    parser = add_command(
        commands,
        "export",
        _export,
        "write a generator as a file that other libraries run, compared with ours",
        "  gan-train export models:/progan-demo/3 --format onnx --out letters.onnx\n"
        "  gan-train export runs/train/.../checkpoints/000000108000 --format torch\n\n"
        "Inputs are z, and label (a class's position) and truncation where the model has them, a\n"
        "row for each image; or picture, of any size. The output is image, float32 in [-1, 1]. A\n"
        "translation becomes two files. `torch` is a program of torch.export (.pt2), which needs\n"
        "PyTorch alone; open such files only from those whom you trust. The largest difference is\n"
        "shown, and recorded in the registry as a tag of the version.",
    )
    add_model(parser)
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx", dest="form")
    parser.add_argument("--out", type=Path, help="default: generator.onnx or generator.pt2")
    parser.add_argument(
        "--images",
        type=int,
        default=1000,
        help="how many to compare; default: %(default)s",
    )
    add_overrides(parser)


def _export(given: argparse.Namespace) -> int:
    from gan_train.files.digests import sha256_of
    from gan_train.inference import Generator
    from gan_train.sampling.export import export
    from pipelines.registry import listed, versions

    registered, name = registered_model(given), Path(given.model).resolve().name
    folder = Path(given.model)
    if registered is not None:
        config, wanted = registered
        known = listed.described(config, wanted)
        number = str(known.number)
        name = f"models:/{known.model}/{number}"
        folder = versions.download(config, number)
    about = {"model": name, "weights_sha256": sha256_of(folder / "generator.safetensors")}
    out = given.out or Path(f"generator{_ENDINGS[given.form]}")
    made = export(Generator.load(folder), given.form, out, given.images, about)
    for file in made:
        print(f"file        {file.path} ({file.path.stat().st_size / 1e6:.3g} MB)")
        print(f"inputs      {'; '.join(file.inputs)}")
        print(f"compared    {file.proof}")
    if registered is not None:
        proofs = [f"{f.proof}; SHA-256 {f.sha256}" for f in made]
        versions.set_tag(config, number, f"export_{given.form}", " | ".join(proofs))
        print(f"recorded    {name}, tag export_{given.form}")
    return 0
