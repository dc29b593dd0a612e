"""Registers the best generators as versions, and gives them the alias that `promotion.py` decides.

This is the door of the room: what other rooms need stands here, `Shipper` and `ship` included.
Registered models are handled here, runs in `tracking.py`, the files of a model in
`logged_model.py`. `promotion.py` decides who is champion, `aliases.py` makes it so, and
`model_card.py` writes the description.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from gan_train.config import Config
from gan_train.data.index import Index
from gan_train.errors import UserError
from gan_train.files.atomic import write_json
from gan_train.files.digests import sha256_of
from gan_train.files.locks import locked
from gan_train.images.origin import Identity
from gan_train.inference import VERSION
from gan_train.runs.events import read_events
from gan_train.runs.ledger import LEDGER
from gan_train.runs.shared import workspace_lock
from gan_train.training.scoring import reported_scores
from pipelines.registry import logged_model
from pipelines.registry.aliases import Given, appoint, appoint_by_hand, between_seeds
from pipelines.registry.card_picture import card_picture
from pipelines.registry.fingerprints import config_hash, recipe_hash
from pipelines.registry.lineage import lineage
from pipelines.registry.model_card import CardFacts, model_card
from pipelines.registry.promotion import (
    BLOCKS_TAG,
    CHAMPION,
    RECIPE_TAG,
    START_TAG,
    best_checkpoint,
    event_standing,
    version_standing,
    why_none,
)
from pipelines.registry.provenance import COMMIT_TAG, VERSION_TAG, ledger_tags
from pipelines.registry.run_table import TRAINING
from pipelines.registry.shipping import Delivery, Shipper, ship
from pipelines.registry.tracking import (
    FOLLOWS_TAG,
    connect,
    connect_to_read,
    existing_allowed,
    experiment_of,
    failures,
    tracking_uri,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

__all__ = [
    "Registration",
    "Shipper",
    "champion",
    "config_hash",
    "download",
    "find_version",
    "model_name",
    "promote",
    "register_best",
    "register_import",
    "ship",
]

CARDS = "model_card"
"""The folder of the pictures of model cards, among a run's artifacts."""


@dataclass(frozen=True)
class Registration:
    """A version of the registered model, with its alias and scores."""

    model: str
    version: int
    alias: str  # `champion` or `challenger`
    reason: str
    metric: str
    score: float
    scores: dict[str, Any]
    text: str  # the deciding score with its error
    run_id: str
    ui: str  # a URL, or the command that opens the page
    appointed: bool = field(default=False, compare=False)  # whether it became champion just now


def model_name(config: Config) -> str:
    """The name of a recipe's registered model, such as `progan-demo` or `srgan-photos-x4`."""
    family, name = config.family.name, config.name
    return config.registry.model or (name if name.startswith(family) else f"{family}-{name}")


def register_best(
    config: Config, run_dir: Path, index: Index, ids: Mapping[str, str]
) -> Registration:
    """Make the run's best scored checkpoint a version of the registered model, and decide whether
    it becomes champion. May be repeated: the same checkpoint is the same version. Its score is the
    one that lies beside it as `reported.json`, which is of images that did not choose it; without
    that file, the one by which it was chosen.

    Raises UserError when no checkpoint is fit for it, or the tracking server is away.
    """
    final = None if config.registry.partly_grown else config.data.resolution
    event = best_checkpoint(events := read_events(run_dir), final)
    if event is None:
        raise UserError(why_none(events, run_dir.name, final))
    delivery = Delivery(config, run_dir, index, ids)
    try:
        run_id = delivery.once()
        client = connect(config)
        with workspace_lock(config, "registry"):
            version = _version_of(client, config, run_dir, index, ids, run_id, event)
        given = appoint(client, version, config.registry.seed_deviation)
    except failures() as error:
        raise _unreachable(config, error) from error
    return _registration(config, version, given)


def reported(config: Config, run_dir: Path) -> dict[str, Any] | None:
    """The scores of the run's best checkpoint on latents that did not choose it, and how they were
    measured; None where these are not known."""
    final = None if config.registry.partly_grown else config.data.resolution
    best = best_checkpoint(read_events(run_dir), final)
    return None if best is None else reported_scores(run_dir / best["path"], best)


def register_import(config: Config, folder: Path, origin: str, digest: str) -> tuple[int, str]:
    """Register a generator that was not trained here as a version of the registered model.

    It has no score, so it gets no alias: the champion stays. `origin` and `digest` are the imported
    file's name and SHA-256. Returns the version and where to see it. Raises UserError when
    the tracking server is away.
    """
    name = model_name(config)
    try:
        client = connect(config)
        with workspace_lock(config, "registry"):
            _ensure_model(client, config, name)
            label = f"import-{digest[:12]}"
            run_id = client.create_run(experiment_of(client, config), run_name=label).info.run_id
            model = logged_model.deliver_import(client, run_id, label, folder)
            client.set_terminated(run_id)
            tags = {
                "logged_model": model.model_id,
                "family": config.family.name,
                "recipe": config.name,
                "resolution": str(config.data.resolution),
                "images_seen": "0",
                "imported_from": origin,
                "imported_sha256": digest,
                logged_model.WEIGHTS_TAG: model.tags[logged_model.WEIGHTS_TAG],
            }
            version = client.create_model_version(
                name,
                source=model.artifact_location,
                run_id=run_id,
                model_id=model.model_id,
                tags=tags,
                description=f"Imported from `{origin}` (SHA-256 {digest}), not trained or scored "
                "here. Its terms of use are those of whoever published it.",
            )
            _link(client, model, version)
    except failures() as error:
        raise _unreachable(config, error) from error
    return int(version.version), _page(config, name, int(version.version))


def promote(config: Config, version: int, force: bool = False) -> Registration:
    """Make a version champion by hand, even if its score is worse.

    Raises UserError when there is no such version or, unless forced, when its score and that of
    the present champion were not measured alike.
    """
    try:
        client = connect(config)
        new = find_version(client, config, str(version))
        given = appoint_by_hand(client, new, force)
    except failures() as error:
        raise _unreachable(config, error) from error
    return _registration(config, new, given)


def champion(config: Config) -> Registration | None:
    """The present champion; None if there is none yet. Raises UserError when the server is away."""
    try:
        now = champion_version(connect(config), config)
    except failures() as error:
        raise _unreachable(config, error) from error
    if now is None:
        return None
    return _registration(config, now, Given(CHAMPION, now.tags.get("reason", ""), appointed=False))


def download(config: Config, version_or_alias: str) -> Path:
    """A folder with the `generator.safetensors` and `generator.json` of a version (`3`) or an alias
    (`champion`), checked against the registered SHA-256 and kept in the workspace.

    Nothing that was downloaded is executed. Raises UserError when there is no such version, the
    server is away, or the weights are not those that were registered.
    """
    try:
        client = connect_to_read(config)
        found = find_version(client, config, version_or_alias)
        wanted = found.tags.get(logged_model.WEIGHTS_TAG, "")
        target = config.workspace / "models" / found.name / f"{found.version}-{wanted[:16]}"
        with locked(config.workspace / "registry.lock"):
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                logged_model.download(tracking_uri(config), str(found.source), target)
            if not (target / VERSION).exists():
                run = client.get_run(found.run_id).info.run_name if found.run_id else None
                address = f"models:/{found.name}/{found.version}"
                write_json(target / VERSION, Identity(model=address, run=run).model_dump())
    except failures() as error:
        raise _unreachable(config, error) from error
    if sha256_of(target / logged_model.FILES[1]) != wanted:
        raise UserError(
            f"{target} does not hold the weights of {found.name} version {found.version} "
            "(SHA-256 differs): delete the folder and download again"
        )
    return target


def set_tag(config: Config, version_or_alias: str, key: str, value: str) -> None:
    """Write a tag, which the version's page shows. Raises UserError when there is no such version,
    or the tracking server is away."""
    try:
        client = connect_to_read(config)
        found = find_version(client, config, version_or_alias)
        client.set_model_version_tag(found.name, found.version, key, value)
    except failures() as error:
        raise _unreachable(config, error) from error


# ---- versions ----------------------------------------------------------------------------------


def _version_of(
    client: MlflowClient,
    config: Config,
    run_dir: Path,
    index: Index,
    ids: Mapping[str, str],
    run_id: str,
    event: Mapping[str, Any],
) -> ModelVersion:
    """The version of this checkpoint: found, or made with tags and card."""
    run = client.get_run(run_id)
    model = logged_model.find(client, run.info.experiment_id, run_id, logged_model.name_of(event))
    assert model is not None, "the log has arrived, so its models have"
    model = logged_model.with_weights(client, model, run_dir / event["path"])
    name = model_name(config)
    _ensure_model(client, config, name)
    if known := _known(client, name, run, model):
        return known

    chosen = event_standing(event)
    scored = {**event, **(reported_scores(run_dir / event["path"], event) or {})}
    standing = event_standing(scored)
    assert chosen is not None and standing is not None
    model = logged_model.complete(client, model)
    about = model.params | model.tags
    commit, library = (run.data.tags.get(tag) for tag in (COMMIT_TAG, VERSION_TAG))
    card = CardFacts(
        model=name,
        nimg=event["nimg"],
        scores=scored["scores"],
        protocol=scored["protocol"],
        metric=standing.metric,
        chosen=None if scored["scores"] is event["scores"] else chosen.text,
        deviation=between_seeds(client, name, standing),
        task=about.get("task", "generate"),
        z_dim=int(about["z_dim"]),
        conditional=about["conditional"] == "True",
        # events of earlier versions of the program do not tell it, and the recipe did not say auto
        precision=event.get("precision", config.train.precision),
        run_id=run_id,
        picture=_picture(client, run_id, run_dir, event["nimg"]),
        commit=commit,
        library=library,
        config_hash=config_hash(config),
        lineage=lineage(
            config, run.info.experiment_id, run_id, str(run.info.run_name), run.data.tags | {**ids}
        ),
    )
    on_what = ledger_tags(run_dir, event["nimg"])
    if on_what:
        client.log_artifact(run_id, str(run_dir / LEDGER))
    tags = {
        "logged_model": model.model_id,
        "family": config.family.name,
        "recipe": config.name,
        "resolution": index.resolution,
        "images_seen": event["nimg"],
        "precision": card.precision,
        "metric": standing.metric,
        "score": repr(standing.value),
        "n": scored["protocol"].get("images", ""),
        "extractor": scored["protocol"].get("extractor", ""),
        "data_hash": index.content_hash,
        "config_hash": card.config_hash,
        RECIPE_TAG: recipe_hash(config),
        "scores": json.dumps(scored["scores"]),
        "protocol": json.dumps(scored["protocol"], sort_keys=True),
        BLOCKS_TAG: json.dumps(scored.get("blocks") or []),
        logged_model.WEIGHTS_TAG: model.tags[logged_model.WEIGHTS_TAG],
        "git_commit": commit,
        VERSION_TAG: library,
        **on_what,
        # workers may have ended by now, but the MLflow run has their ids
        **{k: v for k, v in run.data.tags.items() if k.startswith(("ray", "prefect"))},
        **ids,
    }
    if config.train.start_from is not None:
        tags[START_TAG] = str(config.train.start_from)
    version = client.create_model_version(
        name,
        source=model.artifact_location,  # MLflow resolves `models:/m-...` by a global address
        run_id=run_id,
        model_id=model.model_id,
        tags={key: str(value) for key, value in tags.items() if value},
        description=model_card(config, index, card),
    )
    _link(client, model, version)
    return version


def _known(client: MlflowClient, name: str, run: Run, model: LoggedModel) -> ModelVersion | None:
    """The version that was made of this checkpoint before, in this MLflow run or in one that it
    replaces (`spool.py`); None if there is none."""
    checkpoint = {logged_model.WEIGHTS_TAG: model.tags[logged_model.WEIGHTS_TAG]}
    checkpoint |= {"images_seen": model.params["images_seen"]}
    while True:
        run_id = run.info.run_id
        for version in client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'"):
            if checkpoint.items() <= version.tags.items():
                if version.tags.get("logged_model") == model.model_id:
                    _link(client, model, version)  # a kill may have come before the link was made
                return version
        before = run.data.tags.get(FOLLOWS_TAG)
        if before is None:
            return None
        run = client.get_run(before)


def _link(client: MlflowClient, model: LoggedModel, version: ModelVersion) -> None:
    """Let the page of a logged model show its version, as MLflow's own functions do."""
    link = json.dumps([{"name": version.name, "version": version.version}])
    client.set_logged_model_tags(str(model.model_id), {"mlflow.modelVersions": link})


def _ensure_model(client: MlflowClient, config: Config, name: str) -> None:
    about = f"Generators of the recipe `{config.name}`. `models:/{name}@champion` is the best one."
    with existing_allowed():
        client.create_registered_model(name, description=about)


def _picture(client: MlflowClient, run_id: str, run_dir: Path, nimg: int) -> str | None:
    """Log the newest sample grid up to this many images; returns the artifact path for the card."""
    with card_picture(run_dir, nimg) as path:
        if path is None:
            return None
        client.log_artifact(run_id, str(path), CARDS)
        return f"{CARDS}/{path.name}"


def find_version(client: MlflowClient, config: Config, version_or_alias: str) -> ModelVersion:
    """The version by number or alias. Raises UserError, which lists the versions there are."""
    from mlflow.exceptions import MlflowException

    name = model_name(config)
    try:
        if version_or_alias.isdecimal():
            return client.get_model_version(name, version_or_alias)
        return client.get_model_version_by_alias(name, version_or_alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    known = [v.version for v in client.search_model_versions(f"name = '{name}'", max_results=100)]
    there = ", ".join(sorted(map(str, known), key=int)) or "none yet"
    raise UserError(f"{name} has no version or alias {version_or_alias!r}; versions: {there}")


def champion_version(client: MlflowClient, config: Config) -> ModelVersion | None:
    """The champion; None if there is none, or not yet: registering may have been killed before."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(model_name(config), CHAMPION)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


# ---- what is told of a version -----------------------------------------------------------------


def _registration(config: Config, version: ModelVersion, given: Given) -> Registration:
    standing = version_standing(version.version, version.tags)
    return Registration(
        model=version.name,
        version=int(version.version),
        alias=given.alias,
        reason=given.reason,
        metric=standing.metric,
        score=standing.value,
        scores=json.loads(version.tags.get("scores", "{}")),
        text=standing.text,
        run_id=version.run_id or "",
        ui=_page(config, version.name, int(version.version)),
        appointed=given.appointed,
    )


def _page(config: Config, name: str, version: int) -> str:
    """Where the version is seen: an address, or the command that serves it."""
    uri = tracking_uri(config)
    page = f"#/models/{quote(name)}/versions/{version}?{TRAINING}"
    if uri.startswith("http"):
        return f"{uri.rstrip('/')}/{page}"
    return f"mlflow ui --backend-store-uri {uri} --port 5000  # http://127.0.0.1:5000/{page}"


def _unreachable(config: Config, error: Exception) -> UserError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(
        f"MLflow at {tracking_uri(config)} does not do what is asked ({first[:300]}): nothing is "
        "lost; once it is back, the same command goes on from here"
    )
