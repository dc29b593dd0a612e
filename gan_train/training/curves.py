"""Curves: scalars that are summed on the device during training, and now and then averaged over the
workers."""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from gan_train.nn.collectives import all_least, all_sum, gather
from gan_train.runs.integrity import Pending

_FOLD = 256  # so many values of a curve wait to be added up


class Place(NamedTuple):
    """Where in training a scalar was measured: `nimg` images had been seen before its step, which
    shows `batch` more."""

    step: int
    nimg: int
    batch: int
    phase: str


class NotFinite(FloatingPointError):
    """Scalars are not finite: their names, and the place of the first."""

    def __init__(self, names: list[str], first: Place) -> None:
        super().__init__(f"{', '.join(names)} not finite")
        self.names, self.first = names, first


class Curves:
    """Keeps the means of scalars since the last `flush`. Adding never waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._values: dict[str, list[Tensor]] = {}
        self._places: dict[str, list[Place]] = {}
        self._finite: dict[str, Tensor] = {}  # how many values came before the first bad one
        self.place = Place(0, 0, 0, "")
        """What is added belongs to this place."""

    def add(self, name: str, value: Tensor) -> None:
        """Add a scalar tensor, or the mean of a larger one, to the curve `name`."""
        values = self._values.setdefault(name, [])
        values.append(value.detach().double().mean())
        self._places.setdefault(name, []).append(self.place)
        if len(values) >= _FOLD:
            self._fold(name)

    def _fold(self, name: str) -> None:
        """Add the values to the sum, one after the other, and count those before the first that is
        not finite."""
        values = self._values[name]
        if not values:
            return
        zero = torch.zeros((), dtype=torch.float64, device=self._device)
        running = torch.stack([self._sums.get(name, zero), *values]).cumsum(0)
        finite = running[1:].isfinite().sum()  # once a sum is bad, all later ones are
        self._sums[name] = running[-1]
        self._finite[name] = self._finite.get(name, torch.zeros_like(finite)) + finite
        values.clear()

    def flush(self) -> dict[str, float]:
        """Return the means over all workers by name, and start anew. Collective: every worker must
        have added the same names.

        Raises `NotFinite` if a mean is not finite.
        """
        means = self.means()
        for kept in (self._sums, self._values, self._places, self._finite):
            kept.clear()
        return means

    def means(self) -> dict[str, float]:
        """What `flush` returns or raises, without starting anew. Collective."""
        names = sorted(self._values)
        if not names:
            return {}
        for name in names:
            self._fold(name)
        counts = [float(len(self._places[name])) for name in names]
        packed = torch.stack([self._sums[name] for name in names])
        packed = torch.cat([packed, packed.new_tensor(counts)])
        sums, total = all_sum(packed).cpu().chunk(2)
        means = dict(zip(names, (sums / total).tolist(), strict=True))
        bad = [name for name, mean in means.items() if not math.isfinite(mean)]
        if bad:
            raise NotFinite(bad, self._first())
        return means

    def pending(self) -> dict[str, Pending]:
        """What was added since the last `flush`, as a checkpoint keeps it. Collective."""
        names = list(self._values)
        for name in names:
            self._fold(name)
        if not names:
            return {}
        sums = gather(torch.stack([self._sums[name] for name in names])[None]).T.tolist()
        counts = [len(self._places[name]) for name in names]
        return {
            name: Pending(count=count, sums=per_worker)
            for name, count, per_worker in zip(names, counts, sums, strict=True)
        }

    def restore(self, pending: Mapping[str, Pending], rank: int, workers: int) -> None:
        """Go on with what a checkpoint kept, as the worker `rank` of `workers`. As many workers as
        had saved it get the same means to the last bit, and others but for rounding."""
        for name, kept in pending.items():
            saved = len(kept.sums)
            own = kept.sums[rank] if saved == workers else sum(kept.sums) / saved
            self._values[name] = []
            self._sums[name] = torch.tensor(own, dtype=torch.float64, device=self._device)
            self._places[name] = [self.place] * kept.count
            self._finite[name] = torch.tensor(kept.count, device=self._device)

    def _first(self) -> Place:
        """The first place, over all workers, at which a value was not finite. Collective."""
        order = list(self._places)  # as they were added, the same on all workers
        never = 2**62
        found = never
        for turn, name in enumerate(order):
            index, places = int(self._finite[name]), self._places[name]
            if index < len(places):
                found = min(found, places[index].nimg * len(order) + turn)
        first = all_least(torch.tensor(found, device=self._device))
        if int(first) == never:  # finite on each worker, but not their sum
            return self.place
        nimg, turn = divmod(int(first), len(order))
        return next(place for place in self._places[order[turn]] if place.nimg == nimg)


def peak_memory_gib(device: torch.device) -> float:
    """The peak memory of this worker in GiB: what PyTorch allocated on a GPU, else the resident set
    of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
