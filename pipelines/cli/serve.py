"""`gan-train serve`: pictures of a trained generator over HTTP, and a gallery in the browser.

This file reads arguments; the work is done in `pipelines.serving`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gan_train.text import line
from pipelines.cli.arguments import add_command, add_overrides
from pipelines.cli.sampling import add_model, registered_model

if TYPE_CHECKING:
    from pipelines.serving.about import About


def add(commands: Any) -> None:
    """Add the command to a parser's list."""
    serve = add_command(
        commands,
        "serve",
        _serve,
        "serve pictures of a trained generator over HTTP, with a gallery page",
        "  gan-train serve demo                                         the champion\n"
        "  gan-train serve models:/progan-demo@champion --port 9000\n"
        "  gan-train serve runs/train/.../checkpoints/000000108000\n\n"
        "Then a browser shows at http://127.0.0.1:8000/\n"
        "  /                                          the gallery\n"
        "  /image.png?seed=3&class=A&truncation=0.7   one image\n"
        "  /grid.png?seeds=0-15&class=A&columns=4     several\n"
        "  /mix.png?seed=1&with=2&layers=0-3          styles of two (families with styles)\n"
        "  /model.json, /health                       what it is, and how it is\n"
        "A model that upscales or translates answers a picture file that is sent to it:\n"
        "  curl --data-binary @a.jpg http://127.0.0.1:8000/image.png?to=B --output b.png\n\n"
        "Another --host than 127.0.0.1 needs a token, which also stands in GAN_TRAIN_SERVE_TOKEN.\n"
        "Programs send it as a Bearer token; browsers ask for it as a password, under any name.\n"
        "It travels readably: across a network, put a proxy with TLS before the server.",
    )
    add_model(serve)
    serve.add_argument(
        "--host", default="127.0.0.1", help="the address to listen on; default: %(default)s"
    )
    serve.add_argument(
        "--port", type=int, default=8000, help="0 takes a free one; default: %(default)s"
    )
    serve.add_argument(
        "--token-file", type=Path, metavar="FILE", help="holds the token that clients must know"
    )
    add_overrides(serve)


def _serve(given: argparse.Namespace) -> int:
    from pipelines.serving.server import address_of, listen, server_of, token_for

    token = token_for(given.host, given.token_file)
    with listen(given.host, given.port) as listening:  # before the model is loaded: that takes long
        about = _about(given)
        from pipelines.serving.app import application

        print(f"{line(about.title)}: {address_of(listening)}", flush=True)
        server_of(application(about, token)).run(sockets=[listening])
    return 0


def _about(given: argparse.Namespace) -> About:
    """The generator that is meant, loaded, and what is known of it."""
    import torch

    from gan_train.files.digests import sha256_of
    from gan_train.inference import Generator
    from pipelines.serving.about import About

    device = "cuda" if torch.cuda.is_available() else "cpu"
    registered = registered_model(given)
    if registered is None:
        folder = Path(given.model)
        return About(
            Generator.load(folder, device),
            name=folder.resolve().name,
            weights=sha256_of(folder / "generator.safetensors"),
            command=(given.model,),
        )
    from pipelines.registry import listed, versions

    config, version = registered
    found = listed.described(config, version)
    folder = versions.download(config, str(found.number))
    return About(
        Generator.load(folder, device),
        name=found.model,
        weights=sha256_of(folder / "generator.safetensors"),
        command=(
            f"models:/{found.model}/{found.number}",
            *(f"--set={override}" for override in given.overrides),
        ),
        version=found.number,
        alias=", ".join(found.aliases),
        measure=found.measure,
        scores=found.scores,
        licence=found.licence,
    )
