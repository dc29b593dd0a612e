"""The last step of loading a configuration, which all commands share."""

from __future__ import annotations

from gan_train import recipes
from gan_train.config import Config
from gan_train.errors import UserError
from gan_train.text import PASSWORD
from pipelines.stack import discovery


def ready(config: Config) -> Config:
    """The configuration with absolute paths. If `gan-train up` has started servers for its
    workspace, this process uses them from now on.

    Raises UserError for an address with a password in it.
    """
    _refuse_passwords(config.model_dump(mode="json"))
    config = recipes.with_absolute_paths(config)
    discovery.use(config)
    return config


def _refuse_passwords(tree: object, key: str = "") -> None:
    """A configuration is stored with its run, and shown by MLflow and Prefect."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            _refuse_passwords(value, f"{key}.{name}" if key else name)
    elif isinstance(tree, list):
        for value in tree:
            _refuse_passwords(value, key)
    elif isinstance(tree, str) and PASSWORD.search(tree):
        raise UserError(
            f"{key} holds a password, and a configuration is shown with its run: leave it out of "
            "the address, and set MLFLOW_TRACKING_URI or MLFLOW_TRACKING_PASSWORD, "
            "PREFECT_API_AUTH_STRING, RAY_AUTH_TOKEN or AWS_SECRET_ACCESS_KEY in the environment"
        )
