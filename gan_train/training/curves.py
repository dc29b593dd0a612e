"""Curves: scalars that are summed on the device during training, and averaged over the workers once
a tick."""

from __future__ import annotations

import resource

import torch
from torch import Tensor

from gan_train.nn.collectives import all_sum


class Curves:
    """Means since the last `flush`, by name. Adding never waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Take one scalar tensor (or the mean of a vector)."""
        value = value.detach().double().mean()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0) + 1

    def flush(self) -> dict[str, float]:
        """Means over the workers, and a fresh start. Collective: every worker added the same names.

        Raises FloatingPointError if a curve is not finite.
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
    """Peak memory of this worker in GiB: the device's on a GPU, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
