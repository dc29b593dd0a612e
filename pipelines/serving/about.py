"""What a server tells of its model: on the gallery page and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gan_train.adversary import StyleSpace, Upscales
from gan_train.inference import Generator
from gan_train.metrics.scores import number, scores_of
from pipelines.serving import limits


@dataclass(frozen=True)
class About:
    """A generator, and what is known of it where it comes from."""

    generator: Generator
    name: str
    weights: str
    """The SHA-256 of the weights."""
    command: tuple[str, ...] = ()
    """The words of the command line by which this generator is meant: a model and its settings."""
    version: int | None = None
    """None for a folder that is in no registry."""
    alias: str = ""
    measure: str = ""
    """The name of the score that decides; empty if there is none."""
    scores: Mapping[str, float] = field(default_factory=dict)
    licence: str | None = None
    """The licence of the images that it was trained on."""

    @property
    def title(self) -> str:
        """The name, and the version if it has one."""
        return self.name if self.version is None else f"{self.name} version {self.version}"

    @property
    def summary(self) -> str:
        """A sentence on what it makes and how well."""
        shape = self.generator.shape
        colour = "grey" if shape.channels == 1 else "RGB"
        does = {
            "generate": f"draws {colour} images of {shape.resolution} pixels",
            "upscale": f"upscales {colour} pictures",
            "translate": f"translates {colour} pictures of {shape.resolution} pixels and more",
        }[self.generator.task]
        said = f"This {self.generator.family} {does}."
        score = scores_of(self.scores, {}).get(self.measure)
        if score is not None:
            said += f" Its {score.measure.label} is {score.text}"
            if score.reference is not None:
                said += f" ({score.reference_word}: {number(score.reference)})"
            said += f"; {score.better} is better." if score.better else "."
        return said

    def facts(self) -> dict[str, Any]:
        """All of it for JSON."""
        generator = self.generator
        adversary = generator.adversary
        return {
            "name": self.name,
            "version": self.version,
            "alias": self.alias or None,
            "family": generator.family,
            "task": generator.task,
            "resolution": generator.shape.resolution,
            "channels": generator.shape.channels,
            "classes": list(generator.shape.classes) if generator.conditional else [],
            "style_layers": adversary.num_ws if isinstance(adversary, StyleSpace) else None,
            "scale": adversary.scale if isinstance(adversary, Upscales) else None,
            "measure": self.measure or None,
            "scores": {name: x for name, x in self.scores.items() if x == x},  # JSON has no NaN
            "licence": self.licence,
            "weights_sha256": self.weights,
            "command": shlex.join(self.command),
            "limits": {
                "images_of_a_grid": limits.most_images(generator),
                "picture_bytes": limits.PICTURE_BYTES,
                "picture_pixels": limits.PICTURE_PIXELS,
                "requests_at_a_time": limits.REQUESTS_OF_A_CLIENT,
            },
        }
