"""The task of making images from latents: generated and real images are compared as sets."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gan_train.adversary import Generates
from gan_train.images.pixels import to_uint8_at
from gan_train.metrics.collect import draw_classes
from gan_train.metrics.path_length import PathLengths
from gan_train.metrics.scores import flat
from gan_train.rng import BatchRandom
from gan_train.tasks.task import Setting, evaluator_of, extractor_of, perceptual_of, rounded


def grid_size(resolution: int) -> tuple[int, int]:
    """The columns and rows of a sample grid: 10 x 8, or fewer (at least 3 x 2) where it would be
    larger than 2560 x 2048 pixels."""
    return max(3, min(10, 2560 // resolution)), max(2, min(8, 2048 // resolution))


class Generation:
    """Draws and scores a generator of images from latents, by `metrics/evaluator.py` and, where
    `evaluate.metrics` asks for them, path lengths."""

    def __init__(self, setting: Setting) -> None:
        config, runtime = setting.config, setting.runtime
        assert isinstance(setting.adversary, Generates)
        self.config, self.adversary, self.device = config, setting.adversary, runtime.device
        self.class_counts = torch.tensor(setting.index.class_counts, device=runtime.device)
        self.extractor = extractor_of(setting)
        self.evaluator = evaluator_of(
            setting, self.extractor, setting.index, config.evaluate.images
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
        """Images uint8 [n, C, R, R] and labels int64 [n] (None without classes) at these places
        int64 [n] of the sequence that is scored.

        Labels are drawn as often as the data set has each class.
        """
        sequence, places = self.config.evaluate.latents, positions.to(self.device)
        if sequence == 0:
            rng = BatchRandom(self.config.seed, "evaluate", places)
        else:  # the same latents for runs of all seeds, so that two versions can be compared
            rng = BatchRandom(sequence, "report", places)
        z, label = rng.normal(self.adversary.z_dim), None
        if self.adversary.conditional:
            label = draw_classes(rng, self.class_counts)
        return to_uint8_at(self.adversary.sample(z, label), self.adversary.shape.resolution), label

    @torch.inference_mode()
    def grid(self) -> tuple[Tensor, int]:
        """Images uint8 [n, C, R, R] of fixed latents, and the number of columns. With classes,
        every column shows one; if there are more classes than columns, the first are shown."""
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
        blocks: tuple[float, ...] = ()
        protocol = self.evaluator.protocol()
        # path lengths are measured on images of their own
        if set(self.config.evaluate.metrics) != {"path_length"}:
            found = self.evaluator.estimate(self.generate)
            scores |= self.evaluator.beside_real(found)
            protocol |= {"latents": self.config.evaluate.latents}
            if self.metric in found:
                blocks = found[self.metric].blocks
        if self.path_lengths is not None:
            scores |= flat(self.path_lengths.measure())
            protocol |= self.path_lengths.protocol()
        return {"scores": scores, "protocol": protocol, "blocks": rounded(blocks)}

    def rehearse(self, count: int) -> None:
        images, _ = self.generate(torch.arange(count))
        if self.extractor is not None:
            self.extractor.features_and_layout(images)
