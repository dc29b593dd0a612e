"""Which configurations are equal: digests of their settings. Pure functions."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from gan_train.config import Config
from gan_train.runs.checkpoint import harmless_keys
from pipelines.registry.tracking import flatten

_LENGTH = ("train.total_kimg",)
"""Settings that a resumption may change, but that make another recipe all the same."""


def config_hash(config: Config) -> str:
    """The SHA-256 of all settings that change what is trained, without those declared harmless."""
    return _digest(_settings(config))


def recipe_hash(config: Config) -> str:
    """The SHA-256 that the configurations of all trainings share which differ in nothing but their
    seed: of the settings of `config_hash`, the seed left out, and the length of the training."""
    settings = _settings(config)
    del settings["seed"]
    whole = dict(flatten(config.model_dump(mode="json")))
    return _digest(settings | {key: whole[key] for key in _LENGTH})


def _settings(config: Config) -> dict[str, Any]:
    harmless = harmless_keys(Config)
    return {
        key: value
        for key, value in flatten(config.model_dump(mode="json"))
        if not any(key == h or key.startswith(f"{h}.") for h in harmless)
    }


def _digest(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
