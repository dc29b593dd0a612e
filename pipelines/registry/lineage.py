"""Where a version comes from, as lines of Markdown for its model card. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from urllib.parse import quote, urlencode

from gan_train.config import Config
from gan_train.text import code, markdown
from pipelines.registry.run_table import TRAINING, page


def lineage(
    config: Config, experiment_id: str, run_id: str, run_name: str, tags: Mapping[str, str]
) -> list[str]:
    """What a version was made by, and links to it where an address is known. `tags` are those of
    the MLflow run, and the identifiers of whoever registers it."""
    runs = f"#/experiments/{experiment_id}/runs"
    lines = [
        f"run {_link(run_name, f'{runs}/{run_id}?{TRAINING}')}, one of "
        f"{_link('all runs', page(experiment_id))}"
    ]
    if flow_run := tags.get("prefect.flow_run_id"):
        server = config.flow.server
        ui = server and f"{server.rstrip('/').removesuffix('/api')}/runs/flow-run/{flow_run}"
        lines.append(f"Prefect flow run {_link(flow_run, ui)}")
    if job := tags.get("ray.submission_id") or tags.get("ray.job_id"):
        jobs = config.cluster.jobs
        dashboard = jobs and f"{jobs.rstrip('/')}/#/jobs/{quote(job)}"
        lines.append(f"Ray job {_link(job, dashboard)}")
    if config.train.start_from is not None:
        lines.append(f"began with the networks of {_parent(PurePath(config.train.start_from))}")
    if compare := tags.get("compare"):
        search = {"searchFilter": f"tags.compare = '{compare}'"}
        place = f"{runs}?{TRAINING}&{urlencode(search, quote_via=quote)}"
        lines.append(f"comparison {_link(compare, place)}, one of whose runs has the page")
    return lines


def _parent(folder: PurePath) -> str:
    """The version in whose download the folder lies, or else the folder's name."""
    downloaded = re.fullmatch(r"(\d+)-[0-9a-f]{16}", folder.name)
    if downloaded and folder.parent.parent.name == "models":
        name = folder.parent.name
        place = f"#/models/{quote(name)}/versions/{downloaded[1]}?{TRAINING}"
        return _link(f"{name} version {downloaded[1]}", place)
    return code(f"{folder.parent.parent.name}/{folder.parent.name}/{folder.name}")


def _link(text: str, address: str | None) -> str:
    return f"[{markdown(text)}]({address})" if address else code(text)
