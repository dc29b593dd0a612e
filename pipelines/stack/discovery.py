"""Has a command use the stack of its workspace, where it is up and nothing else is named."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.stack.record import MLFLOW, PREFECT, RAY, Stack

if TYPE_CHECKING:
    from gan_train.config import Config

log = logging.getLogger(__name__)

_NAMES = {PREFECT: "PREFECT_API_URL", MLFLOW: "MLFLOW_TRACKING_URI", RAY: "RAY_ADDRESS"}
"""The environment variables by which a user names another server."""


def use(config: Config) -> None:
    """Set the environment by which Prefect, MLflow and Ray are found in the stack of the workspace.

    A server that the configuration or the environment names comes first. A service that has ended
    is left out with a warning: the command then does as it does without a stack.
    """
    stack = Stack.of(config.workspace)
    named = {
        PREFECT: config.flow.server,
        MLFLOW: config.registry.tracking_uri,
        RAY: config.cluster.address or config.cluster.jobs,
    }
    for name, variable in _NAMES.items():
        service = stack.services.get(name)
        if service is None:
            continue
        found = stack.environment(name)
        other = named[name] or os.environ.get(variable)
        if other not in (None, "", found[variable]):
            continue
        if service.alive:
            os.environ.update(found)
        else:
            log.warning(
                "%s of %s has ended and is not used; `gan-train up` starts it again",
                *(name, stack.folder),
            )


def prefect_page(config: Config) -> str | None:
    """The address of Prefect's UI, if this process uses the server of the workspace's stack."""
    stack = Stack.of(config.workspace)
    service = stack.services.get(PREFECT)
    if service is None or not service.alive:
        return None
    ours = stack.environment(PREFECT)["PREFECT_API_URL"]
    return service.address if os.environ.get("PREFECT_API_URL") == ours else None


def dashboard(workspace: Path, named: str | None) -> str | None:
    """The address of the dashboard of the workspace's Ray, whose token this process then has.

    None if no Ray is up there, or if `named` or the environment is the address of another cluster.
    """
    stack = Stack.of(workspace)
    service = stack.services.get(RAY)
    if service is None or not service.alive:
        return None
    found = stack.environment(RAY)
    cluster = os.environ.get("RAY_ADDRESS")
    if named is None and cluster and cluster not in (found["RAY_ADDRESS"], service.address):
        return None
    if named is not None and named.rstrip("/") != service.address:
        return None
    os.environ.update({name: found[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")})
    return service.address
