"""GAN-train: how well a classifier that has seen nothing but samples knows real images.

Shmelkov, Schmid and Alahari 2018, "How good is my GAN?" (arXiv 1807.09499), section 3. It is low
where samples are bad, of the wrong class, or too much alike; its counterpart, GAN-test, is
`class_accuracy`, which samples that are too much alike cannot lower. The paper trains a network;
here it is the linear discriminant, on features that are there already.

The error is the bootstrap's (Efron 1979), over blocks of samples, whose sums are drawn with
replacement: predictions are steps, of which a jackknife overrates the error by two. It still
overrates it, by up to a half where there are few samples for each dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gan_train.metrics.diversity import LinearDiscriminant, classify
from gan_train.metrics.scores import Estimate
from gan_train.rng import BatchRandom

_BLOCKS = 20
_RESAMPLED = 20  # each is a fit of its own


def taught_accuracy(
    real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor
) -> Estimate:
    """The share of real features [n, D] that a classifier fitted to fake ones [m, D] finds to be of
    their class. Labels int64 [n] and [m]."""
    classes = 1 + int(torch.cat([real_labels, fake_labels]).max())
    blocks = min(_BLOCKS, len(fake))
    parts = []
    for features, labels in zip(
        fake.tensor_split(blocks), fake_labels.tensor_split(blocks), strict=True
    ):
        part = LinearDiscriminant(fake.shape[1], classes, fake.device)
        part.update(features, labels)
        parts.append(part)

    def taught_by(chosen: Sequence[int]) -> float:
        teacher = LinearDiscriminant(fake.shape[1], classes, fake.device)
        for number in chosen:
            teacher.add(parts[number])
        return float((classify(real, *teacher.fit()) == real_labels).double().mean())

    random = BatchRandom(0, "GAN-train", torch.arange(_RESAMPLED))
    drawn = (random.uniform(blocks) * blocks).long()  # [resampled, blocks]
    again = torch.tensor([taught_by(row) for row in drawn.tolist()], dtype=torch.float64)
    return Estimate(taught_by(range(blocks)), float(again.std()))
