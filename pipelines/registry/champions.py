"""What a training that goes on from the champion must know of it, and what it adds to it.

`versions.py` registers and appoints. Here the champion's checkpoint is found, and it gets a score
on data that it was not trained on, by which `promotion.py` can compare it with new versions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.files.digests import sha256_of
from gan_train.metrics.protocol import comparable
from gan_train.runs import run_folder
from gan_train.runs.checkpoint import FOLDER
from pipelines.registry.logged_model import FILES, WEIGHTS_TAG
from pipelines.registry.promotion import RESCORED_TAG, version_standing
from pipelines.registry.tracking import connect, failures, tracking_uri
from pipelines.registry.versions import champion_version, model_name


def trained_on(config: Config) -> dict[str, int]:
    """The newest version of the recipe's model for each data set, by its content hash.

    Raises UserError when the tracking server is away.
    """
    with _registry(config) as client:
        found = client.search_model_versions(f"name = '{model_name(config)}'", max_results=1000)
    numbered = sorted((int(version.version), version.tags.get("data_hash")) for version in found)
    return {data: number for number, data in numbered if data}


def checkpoint_of(config: Config, version: int) -> Path | None:
    """The folder of the checkpoint that a version was made of, in the workspace of `config`; None
    if it is not there, or no longer holds what was registered.

    Raises UserError when the tracking server is away.
    """
    with _registry(config) as client:
        found = client.get_model_version(model_name(config), str(version))
        run = str(client.get_run(str(found.run_id)).info.run_name)
    images = int(found.tags.get("images_seen", 0))
    if config.store is not None:
        with suppress(UserError):  # there is none
            run_folder.find(config, run)
    folder = run_folder.folder(config) / run / FOLDER / f"{images:012d}"
    weights = folder / FILES[1]
    if not weights.is_file() or sha256_of(weights) != found.tags.get(WEIGHTS_TAG):
        return None
    return folder


def on_other_latents(config: Config, protocol: Mapping[str, Any]) -> int | None:
    """The version that is champion, if its score is comparable with scores under the protocol but
    for the latents; None if there is no champion, or its score is comparable, or is not otherwise.

    Raises UserError when the tracking server is away.
    """
    with _registry(config) as client:
        now = champion_version(client, config)
    if now is None:
        return None
    standing = version_standing(now.version, now.tags, protocol)
    alike = {**standing.protocol, "latents": protocol.get("latents", 0)}
    if comparable(standing.protocol, protocol) is None or comparable(alike, protocol) is not None:
        return None
    return int(now.version)


def record_score(config: Config, version: int, scored: Mapping[str, Any]) -> None:
    """Keep the `scores`, the `protocol` and the `blocks` of a version that was scored anew, instead
    of those of the time before. The scores that it was registered with stay.

    Raises UserError when the tracking server is away.
    """
    kept = ("scores", "protocol", "blocks")
    text = json.dumps({name: scored[name] for name in kept if name in scored}, sort_keys=True)
    with _registry(config) as client:
        client.set_model_version_tag(model_name(config), str(version), RESCORED_TAG, text)


@contextmanager
def _registry(config: Config) -> Iterator[Any]:
    """A client of the tracking server, whose failures become UserErrors."""
    try:
        yield connect(config)
    except failures() as error:
        first = str(error).splitlines()[0][:200]
        raise UserError(
            f"MLflow at {tracking_uri(config)} does not answer ({first}): nothing is "
            "lost; once it is back, the same command goes on from here"
        ) from error
