"""Scores a generator against the stored data set; all workers share the images.

`protocol.py` says what a score depends on, `collect.py` how the workers divide the images,
`real.py` what is measured of the real images. `evaluate.metrics` chooses among these scores:

    fd_efficientnet_lite0 (or fid)       Fréchet distance; lower is better
    kid_..., precision_..., recall_...   other measures of the same features
    kid_within_class_...                 the kernel distance of real images and samples of one
                                         class, averaged over the classes: large when a generator
                                         ignores the class asked for. Absent for unlabelled data
    sliced_wasserstein_...               a distance that needs few images (`sliced_wasserstein.py`)
    density_..., coverage_...            steadier forms of precision and recall
    memorised_..., memorised_p_...       the chance that a sample is nearer to a training image than
                                         another real image is, and its p-value (`memorisation.py`)
    gan_train_accuracy_...               accuracy on real images of a classifier fitted to samples;
                                         absent for unlabelled data
    ..._se                               the standard error of the score over samples
    ..._null                             the same measure between two parts of the real images, of
                                         `null_images` each: what a perfect generator would get.
                                         If `null_images` is below N, the null value of a distance
                                         is too large
    nearest_distance_..., ..._real       median feature distance to the nearest other sample
    pair_distance, ..._within_class      median pixel distance of two samples, pixels from 0 to 1
    class_entropy                        entropy of the predicted classes; 1 when all are equally
                                         frequent
    class_accuracy                       share of samples predicted to be of the class asked for;
                                         `_real`: the share among real images that the classifier
                                         has not seen

Path lengths are measured elsewhere, on pairs of images made for them (`path_length.py`).

Pair distance, entropy and accuracy show collapse, which a distance of features may not. There is a
classifier when the data set has classes and features are computed; with `diversity` as the only
metric no feature network is loaded, and pixels alone are measured. Features beyond the first 10,000
images count for the Fréchet distance only.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from gan_train.data.index import Index
from gan_train.errors import UserError
from gan_train.metrics import real_cache, shipped
from gan_train.metrics.collect import FeatureSet, Generate, PixelPairs
from gan_train.metrics.diversity import class_entropy, classify
from gan_train.metrics.estimates import of_mean
from gan_train.metrics.extractors import Extractor, ExtractorIdentity
from gan_train.metrics.protocol import Protocol
from gan_train.metrics.real import (
    RankShare,
    feature_jobs,
    measure_real,
    order_in_words,
    pair_distances,
)
from gan_train.metrics.real_cache import RealStatistics
from gan_train.metrics.scores import OF_REAL_IMAGES, Estimate, flat, reference_name
from gan_train.nn.collectives import all_sum

log = logging.getLogger(__name__)

FEWEST_IMAGES = 8
"""The fewest images that a data set may have: two halves of four, as neighbour distances need three
other images."""


def needs_features(metrics: Collection[str]) -> bool:
    """Whether any of the metrics is computed from features, not from pixels alone."""
    return not set(metrics) <= {"diversity", "path_length"}


class Evaluator:
    """Measures a generator whose images have the shape and classes of the data set `index`.

    `extractor` is the feature network that `identity` names; it may be None where no metric needs
    it. `images` is N. `directory` holds the shards, `cache` the statistics of real images, and
    `shipped_statistics` those that come with the project. Raises UserError for a data set that is
    too small.
    """

    def __init__(
        self,
        identity: ExtractorIdentity,
        extractor: Extractor | None,
        metrics: Collection[str],
        images: int,
        index: Index,
        directory: Path,
        cache: Path,
        share: RankShare,
        shipped_statistics: Path | None = None,
    ) -> None:
        assert extractor is not None or not needs_features(metrics)
        self.images = min(images, index.samples)
        """N: how many generated images are compared with as many real ones."""
        self.null_images = min(self.images, index.samples // 2)
        if self.null_images < FEWEST_IMAGES // 2 or self.images < FEWEST_IMAGES // 2:
            raise UserError(
                f"evaluate.images is {images}, the data set has {index.samples} images; "
                f"scoring needs at least {FEWEST_IMAGES // 2} and {FEWEST_IMAGES}"
            )
        if self.images < images and share.rank == 0:
            log.warning(
                "evaluate.images is %d, but the data set has %d: N is %d",
                *(images, index.samples, self.images),
            )
        self._index, self._directory, self._share = index, directory, share
        self._identity, self._extractor, self._metrics = identity, extractor, metrics
        self.metric = identity.frechet_name
        """Name of the Fréchet distance, which decides which checkpoint is best."""
        kind = "pixels" if extractor is None else f"{identity.name}-{identity.resize}"
        self._shipped = shipped_statistics
        self._folder = cache / index.content_hash[:16] / f"{kind}-n{self.images}"
        self._real: RealStatistics | None = None

    def protocol(self) -> Protocol:
        """What the scores depend on, to be stored beside them."""
        return {
            "data": self._index.content_hash,
            "extractor": self._identity.name,
            "weights": self._identity.weights_sha256,
            "resize": self._identity.resize,
            "images": self.images,
            "reference": f"real images 0 to {self.images - 1} in {order_in_words(self._index)}",
            "null_images": self.null_images,
        }

    @torch.inference_mode()
    def prepare(self) -> RealStatistics:
        """The statistics of the real images: from the cache, or else shipped or measured, and then
        cached. Collective."""
        if self._real is not None:
            return self._real
        keeper, known, stored = self._share.rank == 0, None, False
        if keeper:
            known = real_cache.load(self._folder, self.protocol())
            stored = known is not None
            if known is None and self._shipped is not None:
                known = shipped.load(self._shipped, self.protocol())
        self._real = real_cache.share(known, self._share.device)
        if self._real is None:
            spans = (self.images, self.null_images)
            self._real = measure_real(
                self._index, self._directory, *spans, self._extractor, self._share
            )
        if keeper and not stored:
            real_cache.store(self._folder, self.protocol(), self._real)
        return self._real

    def score(self, generate: Generate) -> dict[str, float]:
        """The flat form of `estimate`, with the values of real images."""
        return self.beside_real(self.estimate(generate))

    @torch.inference_mode()
    def estimate(self, generate: Generate) -> dict[str, Estimate]:
        """The estimates, by name, of the scores of the images that `generate` makes. Collective;
        every worker gets the same.

        `generate` gets places int64 [n] of the evaluation sequence 0 to N-1; it returns their
        images uint8 [n, C, R, R] and the labels int64 [n] asked for, or None.
        """
        real = self.prepare()
        device = self._share.device
        pixels = PixelPairs(self.images, device)
        features = None
        if self._extractor is not None:
            features = FeatureSet(0, self.images, self._extractor.dims, device)
        predicted = torch.zeros(self.images, dtype=torch.int64, device=device)
        for positions in self._share.positions(self.images):
            images, labels = generate(positions)
            side = self._index.resolution
            assert images.shape == (len(positions), self._index.channels, side, side)
            pixels.update(positions, images, labels)
            if self._extractor is not None and features is not None:
                pooled, layout = self._extractor.features_and_layout(images)
                features.update(positions, pooled, labels)
                if "weights" in real.tensors:
                    guess = classify(layout, real.tensors["weights"], real.tensors["bias"])
                    predicted[positions.to(device)] = guess
        pixels.all_reduce()
        all_sum(predicted)

        scores: dict[str, Estimate] = {}
        wanted = self._metrics
        if features is not None:
            features.all_reduce()
            jobs = feature_jobs(self._identity, real.tensors, features, wanted)
            scores |= self._share.of_jobs(jobs)
        distances = pair_distances(pixels)
        if (
            "diversity" in wanted or distances["pair_distance"].value == 0
        ):  # a collapse is always told
            scores |= distances
        if "diversity" in wanted and "weights" in real.tensors:
            counts = torch.bincount(predicted, minlength=len(self._index.classes))
            scores["class_entropy"] = class_entropy(counts)
            if pixels.labels is not None:
                scores["class_accuracy"] = of_mean(predicted == pixels.labels)
        return scores

    def beside_real(self, estimates: Mapping[str, Estimate]) -> dict[str, float]:
        """The flat form of estimates: each value with its error, followed by its values for real
        images (`_null` or `_real`). Collective, where these were not measured yet."""
        real = self.prepare().values
        found: dict[str, float] = {}
        for name, estimate in estimates.items():
            found |= flat({name: estimate})
            beside = (reference_name(name, reference) for reference in OF_REAL_IMAGES)
            found |= {one: real[one] for one in beside if one in real}
        return found
