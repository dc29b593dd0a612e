"""Curves: scalars that are summed on the device during training, and now and then averaged over the
workers."""

from __future__ import annotations

import resource

import torch
from torch import Tensor

from gan_train.nn.collectives import all_sum


class Curves:
    """Keeps the means of scalars since the last `flush`. Adding never waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add a scalar tensor, or the mean of a larger one, to the curve `name`."""
        value = value.detach().double().mean()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0) + 1

    def flush(self) -> dict[str, float]:
        """Return the means over all workers by name, and start anew. Collective: every worker must
        have added the same names.

        Raises FloatingPointError if a mean is not finite.
        """
        names = sorted(self._sums)
        if not names:
            return {}
        packed = torch.stack(
            [self._sums[n] for n in names]
            + [
                torch.tensor(float(self._counts[n]), device=self._device, dtype=torch.float64)
                for n in names
            ]
        )
        sums, counts = all_sum(packed).cpu().chunk(2)
        self._sums.clear()
        self._counts.clear()
        means = dict(zip(names, (sums / counts).tolist(), strict=True))
        bad = [n for n, v in means.items() if v != v or v in (float("inf"), float("-inf"))]
        if bad:
            raise FloatingPointError(
                f"training diverged: {', '.join(bad)} not finite. Lower the learning rate or raise "
                "the gradient penalty, and resume from the last checkpoint"
            )
        return means


def peak_memory_gib(device: torch.device) -> float:
    """The peak memory of this worker in GiB: what PyTorch allocated on a GPU, else the resident set
    of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
