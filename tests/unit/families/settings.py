"""What an optimizer of a family goes by at one moment."""

from __future__ import annotations

from gan_train.adversary import Adversary, Clock, OptimizerSettings, Stage


def settings_at(
    family: Adversary, optimizer: str, stage: Stage, clock: Clock | None = None
) -> OptimizerSettings:
    """The settings that the trainer gives the named optimizer, as declared and scheduled."""
    declared = family.optimizers()[optimizer].settings
    return family.settings(optimizer, declared, stage, clock or Clock())
