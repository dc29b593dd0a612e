"""The task of making images of latents: they are compared with real ones as distributions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gan_train.adversary import Generates
from gan_train.images.pixels import to_uint8_at
from gan_train.metrics.collect import draw_classes
from gan_train.metrics.path_length import PathLengths
from gan_train.rng import BatchRandom
from gan_train.tasks.task import Setting, evaluator_of, extractor_of, perceptual_of


def grid_size(resolution: int) -> tuple[int, int]:
    """The columns and rows of a sample grid: 10 x 8, or fewer where it would pass 2560 x 2048."""
    return max(3, min(10, 2560 // resolution)), max(2, min(8, 2048 // resolution))


class Generation:
    """A generator of images from latents, scored by `metrics/evaluator.py`, and by path lengths
    where they are asked for."""

    def __init__(self, setting: Setting) -> None:
        config, runtime = setting.config, setting.runtime
        assert isinstance(setting.adversary, Generates)
        self.config, self.adversary, self.device = config, setting.adversary, runtime.device
        self.class_counts = torch.tensor(setting.index.class_counts, device=runtime.device)
        self.evaluator = evaluator_of(
            setting, extractor_of(setting), setting.index, config.evaluate.images
        )
        self.metric = self.evaluator.metric
        self.path_lengths: PathLengths | None = None
        if "path_length" in config.evaluate.metrics:
            self.path_lengths = PathLengths(
                config.evaluate.path_lengths,
                config.evaluate.path_length_images,
                perceptual_of(setting),
                self.adversary,
                self.class_counts,
                config.seed,
                setting.share,
            )

    @torch.inference_mode()
    def generate(self, positions: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 [n, C, R, R] and classes [n]: the images at these places of the evaluation.

        Classes are asked for as often as the data has them.
        """
        rng = BatchRandom(self.config.seed, "evaluate", positions.to(self.device))
        z, label = rng.normal(self.adversary.z_dim), None
        if self.adversary.conditional:
            label = draw_classes(rng, self.class_counts)
        return to_uint8_at(self.adversary.sample(z, label), self.adversary.shape.resolution), label

    @torch.inference_mode()
    def grid(self) -> tuple[Tensor, int]:
        """Images of fixed latents. With classes, every column has its own; where there are more
        classes than columns, the first ones are shown."""
        shape = self.adversary.shape
        columns, rows = grid_size(shape.resolution)
        if self.adversary.conditional:
            columns = max(1, min(len(shape.classes), 2560 // shape.resolution, 26))
        positions = torch.arange(columns * rows, device=self.device)
        z = BatchRandom(self.config.seed, "grid", positions).normal(self.adversary.z_dim)
        label = positions % columns if self.adversary.conditional else None
        return to_uint8_at(self.adversary.sample(z, label), shape.resolution), columns

    def measure(self) -> dict[str, Any]:
        scores: dict[str, float] = {}
        protocol = self.evaluator.protocol()
        if set(self.config.evaluate.metrics) != {"path_length"}:  # which needs no other images
            scores |= self.evaluator.score(self.generate)
        if self.path_lengths is not None:
            scores |= self.path_lengths.measure()
            protocol |= self.path_lengths.protocol()
        return {"scores": scores, "protocol": protocol}
