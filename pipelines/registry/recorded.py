"""What the registry keeps of a version so that it can be trained again: the ledger of its run, with
configuration, data, environment and every fingerprint, and where in it the version stands."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.metrics.protocol import Protocol
from gan_train.runs.ledger import (
    LEDGER,
    Entry,
    entry_of_checkpoint,
    read_entries,
    read_lines,
    started,
)
from pipelines.registry.provenance import CHAIN_TAG, COMMIT_TAG
from pipelines.registry.tracking import connect_to_read, failures, tracking_uri
from pipelines.registry.versions import download, find_version


@dataclass(frozen=True)
class Recorded:
    """A version as it was trained. `start` is the first entry of its ledger, `entries` are the
    present ones up to the version, and `weights` is the folder of its generator."""

    model: str
    number: int
    run: str
    nimg: int
    start: Entry
    entries: tuple[Entry, ...]
    commit: str | None
    metric: str
    score: float
    protocol: Protocol
    weights: Path


def recorded(config: Config, version_or_alias: str) -> Recorded:
    """What the registry has recorded of the version, by number or alias, of the recipe's model.

    Raises UserError where there is no such version, its ledger was not recorded or is not that of
    the version, or the tracking server is away.
    """
    try:
        client = connect_to_read(config)
        found = find_version(client, config, version_or_alias)
        name = f"{found.name} version {found.version}"
        if CHAIN_TAG not in found.tags:
            raise UserError(
                f"{name} was registered without a ledger: it is an import, or an earlier version "
                "of gan-train trained it. What it was trained on was not written down; a new run "
                "(`gan-train run`) writes it"
            )
        run = client.get_run(str(found.run_id))
        with tempfile.TemporaryDirectory() as folder:
            client.download_artifacts(str(found.run_id), LEDGER, folder)
            sound = all(line.sound for line in read_lines(Path(folder)))
            entries = read_entries(Path(folder))
    except failures() as error:
        first = str(error).splitlines()[0][:200]
        raise UserError(f"MLflow at {tracking_uri(config)} does not answer ({first})") from error
    nimg = int(found.tags["images_seen"])
    entry, start = entry_of_checkpoint(entries, nimg), started(entries, 0)
    same = entry is not None and entry["chain"] == found.tags[CHAIN_TAG]
    if start is None or not (same and sound):
        raise UserError(
            f"the {LEDGER} in MLflow is not the one with which {name} was registered: it was "
            f"changed there. gan-train verify {run.info.run_name} checks the run's own"
        )
    return Recorded(
        model=found.name,
        number=int(found.version),
        run=str(run.info.run_name),
        nimg=nimg,
        start=start,
        entries=tuple(e for e in entries if e["nimg"] <= nimg),
        commit=run.data.tags.get(COMMIT_TAG),
        metric=found.tags.get("metric", ""),
        score=float(found.tags.get("score", "nan")),
        protocol=json.loads(found.tags.get("protocol", "{}")),
        weights=download(config, str(found.version)),
    )
