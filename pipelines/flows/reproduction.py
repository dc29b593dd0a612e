"""`gan-train reproduce`: trains a registered version again, and compares the weights.

The ledger that was registered with it says what to train: configuration, data and environment.
"""

from __future__ import annotations

import copy
import logging
import signal
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gan_train import recipes
from gan_train.__main__ import Trained, train_plain
from gan_train.config import Config
from gan_train.data.finished import finished_set
from gan_train.data.index import Index
from gan_train.data.sharding import shard
from gan_train.errors import UserError
from gan_train.files.store import StoreError
from gan_train.files.tensors import load_tensors
from gan_train.metrics.protocol import comparable
from gan_train.runs import run_folder, stop_signals
from gan_train.runs.checkpoint import FOLDER, refuse_changes
from gan_train.runs.environment import differences, machine
from gan_train.runs.ledger import Entry, Parting, compare, read_entries
from gan_train.runs.runtime import PlainRuntime
from gan_train.training.scoring import reported_scores, stored_scores
from pipelines.registry.provenance import COMMIT_TAG, source_tags
from pipelines.registry.recorded import Recorded

_WEIGHTS = "generator.safetensors"
_HERE = "reproduced"
"""The folder, within this machine's copy of a bucket, in which one worker trains again."""

log = logging.getLogger(__name__)


class Difference(NamedTuple):
    """How much the weights of one network differ: the largest difference of a value, and the norm
    of all differences relative to the norm of the recorded weights."""

    largest: float
    relative: float


class Reproduced(NamedTuple):
    """How a repetition came out: the differences by network, empty where all bits are the same;
    where the ledgers part; and the deciding score here, if one was measured as the recorded one
    was."""

    differences: dict[str, Difference]
    parting: Parting | None
    same_entries: int
    score: float | None


def configuration(version: Recorded, place: Config, changes: list[str]) -> Config:
    """The configuration with which to train a version again, in the workspace and registry of
    `place`; `changes` are overrides such as `cluster.gpu=no`. Where the workspace is a bucket, one
    worker trains in a folder of this machine, and several train in the bucket.

    Raises UserError for a change that would train something else.
    """
    about, recorded = version.start["environment"], copy.deepcopy(version.start["config"])
    workspace = str(place.workspace)
    if place.store is not None:
        several = int(about["workers"]) > 1
        workspace = place.store if several else str(place.workspace / _HERE)
    config = recipes.change(
        recipes.with_absolute_paths(recipes.check(recorded, changes)),
        {
            "workspace": workspace,
            "registry.tracking_uri": place.registry.tracking_uri,
            "flow.server": place.flow.server,
            "train.total_kimg": version.nimg / 1000,
            "train.allow_changed": [],
            "train.threads": int(about["threads"]),
            "cluster.workers": int(about["workers"]),
            "cluster.max_workers": None,
        },
    )
    refuse_changes(version.start["config"], config)
    return config


def environment_differences(version: Recorded, config: Config) -> list[str]:
    """In words, what may make the weights differ: what of the recorded environment is otherwise
    here, and where the recorded run was resumed otherwise than it had begun."""
    here = machine(PlainRuntime(Path(), config.cluster.gpu).device)
    both = differences(version.start["environment"], here)
    found = [f"{key}: {then} recorded, {now} here" for key, (then, now) in both.items()]
    commit = source_tags().get(COMMIT_TAG)
    if version.commit != commit:
        found.append(f"commit: {version.commit or 'none'} recorded, {commit or 'none'} here")
    return found + [words for one in _starts(version)[1:] if (words := _otherwise(version, one))]


def _starts(version: Recorded) -> list[Entry]:
    return [entry for entry in version.entries if entry["kind"] == "start"]


def _otherwise(version: Recorded, start: Entry) -> str:
    """In words, what was changed where the recorded run was resumed; empty where it was nothing
    that a training depends on."""
    both = differences(version.start["environment"], start["environment"])
    changed = [f"{key}: {before}, then {then}" for key, (before, then) in both.items()]
    try:
        refuse_changes(
            version.start["config"],
            recipes.change(recipes.check(start["config"]), {"train.allow_changed": []}),
        )
    except UserError:
        changed.append("other settings")
    at = f"the recorded run was resumed otherwise at {start['nimg'] / 1000:g} kimg"
    return f"{at} ({'; '.join(changed)})" if changed else ""


def data_of(version: Recorded, config: Config, place: Config) -> Path:
    """The folder of the shards on which a version was trained: found by its hash in the workspace
    of `place`, or in that where it was trained, or else written from the source. Raises UserError
    where none of these has them."""
    wanted: str = version.start["data"]
    trained = recipes.check(copy.deepcopy(version.start["config"]))
    for where in (place, trained):
        if config.store not in (None, where.store):  # its workers would not find them
            continue
        try:
            if (directory := finished_set(where, wanted)) is not None:
                return directory
        except StoreError as error:
            if where is place:
                raise
            log.warning(
                "%s, where the version was trained, was not searched: %s", where.store, error
            )
    of = f"{version.model} version {version.number}"
    into = f"{place.store or config.workspace}/shards"
    remedy = (
        "bring back the source as it was, name where it lies (--set data.source=PLACE), or copy "
        f"the folder of its shards into {into}"
    )
    try:
        directory = _written(config)
    except (UserError, OSError) as error:
        raise UserError(
            f"the data of {of} (content hash {wanted[:12]}) are neither in the workspace nor in "
            f"{trained.store or trained.workspace}, where it was trained, and cannot be written "
            f"anew: {error}. To go on, {remedy}"
        ) from error
    found = Index.load(directory).content_hash
    if found != wanted:
        raise UserError(
            f"{config.data.source} now makes other data (content hash {found[:12]}) than {of} was "
            f"trained on ({wanted[:12]}): {remedy}"
        )
    return directory


def _written(config: Config) -> Path:
    """The folder of the shards of a configuration, written from the source where needed."""
    if config.store is None:
        return shard(config.data, config.workspace)
    from pipelines.compute import sharding

    return sharding.shard(config).directory


def train_again(config: Config, shards: Path) -> Trained:
    """Train in a new run folder: with one worker in this process, with several under Ray."""
    run_dir = run_folder.new(config, shards)
    if config.cluster.workers == 1:
        logging.getLogger("gan_train").setLevel(logging.INFO)
        return train_plain(config, str(run_dir), shards)
    from pipelines.flows import prefect_env

    prefect_env.prepare(config)
    from pipelines.flows import pipeline

    state = pipeline.final_state(pipeline.train_flow, config, run_dir.name)
    if state.is_cancelled():
        return Trained(run_dir, stop_signals.status_of(signal.SIGINT))
    state.result()
    return Trained(run_dir, 0)


def compared(version: Recorded, run_dir: Path) -> Reproduced:
    """Compare the run that was trained again with the recorded version."""
    folder = run_dir / FOLDER / f"{version.nimg:012d}"
    weights = (load_tensors(place / _WEIGHTS) for place in (version.weights, folder))
    same, parting = compare(version.entries, read_entries(run_dir))
    chosen = stored_scores(folder) or {"scores": {}, "protocol": {}}
    # the registry has the score on latents that did not choose the checkpoint, where it is measured
    alike = (
        scored["scores"].get(version.metric)
        for scored in (reported_scores(folder, chosen), chosen)
        if scored and comparable(version.protocol, scored["protocol"]) is None
    )
    return Reproduced(between(*weights), parting, same, next(alike, None))


def between(recorded: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> dict[str, Difference]:
    """The differences by network, of those whose bits are not the same; names and shapes must
    be."""
    assert recorded.keys() == here.keys(), "the same family and settings built both"
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for name, tensor in recorded.items():
        pairs[name.partition(".")[0]].append((tensor, here[name]))
    return {
        network: _difference(both)
        for network, both in pairs.items()
        if any(_bits(a) != _bits(b) for a, b in both)
    }


def _bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _difference(pairs: list[tuple[Tensor, Tensor]]) -> Difference:
    apart = torch.cat([(b.double() - a.double()).reshape(-1) for a, b in pairs])
    whole = torch.cat([a.double().reshape(-1) for a, _ in pairs])
    return Difference(float(apart.abs().max()), float(apart.norm() / whole.norm()))
