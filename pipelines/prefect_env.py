"""Prefect's environment for a run from the terminal. Prefect reads it when it is first imported."""

from __future__ import annotations

import os

from gan_train.config import Config


def prepare(config: Config) -> None:
    """Choose server, database and loudness, where the user's environment has not.

    Without a server Prefect runs one of its own for the time of the flow, on loopback. Its
    database is kept in the workspace, so that `PREFECT_HOME=<workspace>/prefect prefect server
    start` shows all runs later.
    """
    embedded = config.flow.server is None and "PREFECT_API_URL" not in os.environ
    wanted = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        # a person at the terminal reads our own lines; the flow's log is in the UI
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    }
    if config.flow.server is not None:
        os.environ["PREFECT_API_URL"] = config.flow.server
    if embedded:
        wanted |= {
            "PREFECT_HOME": str(config.workspace.absolute() / "prefect"),
            "PREFECT_SERVER_EPHEMERAL_ENABLED": "true",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        }
        config.workspace.mkdir(parents=True, exist_ok=True)
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
