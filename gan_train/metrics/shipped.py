"""Statistics of the sample data's real images, which come with the project.

A first run on the sample data need not measure thousands of real images before its first score.
Only what cannot be computed at once is in the files: the features in 16 bits, their labels, the
classifier, and the values that stand beside scores. The files are those of `real_cache.py`;
`sample_data/make_statistics.py` writes them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from gan_train.files.atomic import read_json
from gan_train.metrics import real_cache
from gan_train.metrics.collect import FeatureSet
from gan_train.metrics.real import reference_tensors
from gan_train.metrics.real_cache import Identity, RealStatistics

_STEPS = 2**16 - 1
_KEPT = ("labels", "unseen", "weights", "bias")


def load(folder: Path, identity: Identity) -> RealStatistics | None:
    """The statistics in the folder, on the CPU; None if there are none, if they are of another
    identity, or, with a warning, if they are damaged."""
    record = folder / real_cache.RECORD
    if not record.is_file() or read_json(record).get("identity") != dict(identity):
        return None
    packed = real_cache.load(folder, identity)
    return None if packed is None else unpack(packed)


def pack(statistics: RealStatistics) -> RealStatistics:
    """The statistics as they are shipped: all that `unpack` cannot compute.

    Features are whole multiples of a 65,535th of their dimension's largest, and none is negative.
    The rounding changes scores by less than the sixth digit, as another processor does.
    """
    features = statistics.tensors["features"]
    assert features.min() >= 0
    unit = features.amax(0) / _STEPS
    steps = (features / unit.clamp(min=1e-12)).round().to(torch.int32)
    tensors = {"feature_steps": steps.to(torch.uint16), "feature_unit": unit}
    tensors |= {name: statistics.tensors[name] for name in _KEPT}
    return RealStatistics(tensors, statistics.values)


def unpack(packed: RealStatistics) -> RealStatistics:
    """The statistics of which `pack` kept a part."""
    features: Tensor = packed.tensors["feature_steps"].float() * packed.tensors["feature_unit"]
    count, dims = features.shape
    whole = FeatureSet(0, count, dims, features.device)
    whole.update(torch.arange(count), features, packed.tensors["labels"])
    tensors = reference_tensors(whole) | {name: packed.tensors[name] for name in _KEPT}
    return RealStatistics(tensors, packed.values)
