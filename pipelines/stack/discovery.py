"""Has a command use the stack of its workspace, where it is up and nothing else is named."""

from __future__ import annotations

import logging
import os

from gan_train.config import Config
from pipelines.stack.record import MLFLOW, PREFECT, RAY, Stack

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
    for name, service in stack.services.items():
        if name not in named:
            continue
        found = stack.environment(name)
        if (named[name] or os.environ.get(_NAMES[name]) or found[_NAMES[name]]) != found[
            _NAMES[name]
        ]:
            continue
        if service.alive:
            os.environ.update(found)
        else:
            log.warning(
                "%s of %s has ended and is not used; `gan-train up` starts it again",
                *(name, stack.folder),
            )
