"""Averages gradients over the workers while the backward pass that makes them goes on.

Gradients travel in buckets of some MiB. As soon as the backward pass has made all gradients of a
bucket, their sum over the workers begins, and the backward pass goes on beside it. Li et al. 2020
(arXiv 2006.15704), section 3.2, describe this for `DistributedDataParallel`, which is not used here
because it raises for phases that do not reach all parameters (decision 23).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from gan_train.nn.collectives import active

ReducePrecision = Literal["full", "bf16"]
"""The format in which gradients travel between workers: their own, or rounded to bfloat16."""

BUCKET_BYTES = 4 << 20
"""A bucket takes no further gradient once it holds as much. Larger buckets leave more to send when
the backward pass ends; smaller ones wait for the network's latency more often."""
_AHEAD = 2  # so many buckets in bf16 travel to be summed before the oldest one's mean travels back


class GradientAverage:
    """Replaces gradients, and the running statistics, by their means over the workers.

    Workers hold equal shares of the global batch, so the mean over the workers is the mean over the
    global batch. Every worker must make the same calls. Which gradients share a bucket depends on
    the parameters that have gradients and on their order alone. So the sums are the same in every
    run on that many workers, and do not depend on what was ready first.
    """

    def __init__(
        self, precision: ReducePrecision = "full", bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self._precision, self._bucket_bytes = precision, bucket_bytes
        self._hooked: set[int] = set()
        self._plans: dict[str, list[list[Tensor]]] = {}
        self._current: _Pass | None = None

    @contextmanager
    def of_backward(
        self, name: str, parameters: Sequence[Tensor], statistics: Sequence[Tensor] = ()
    ) -> Iterator[None]:
        """A context for one backward pass; afterwards, gradients and `statistics` are the means.

        Gradients from earlier micro-batches are part of it. Some parameters may have no gradient,
        as with lazy regularisers and levels that have not grown yet; they must be the same on all
        workers. Under one `name`, they should be the same every time: a bucket is sent early if it
        is known from the first time. `statistics` are floating tensors that the backward pass does
        not change. In a single process nothing happens.
        """
        if not active():
            yield
            return
        self._hook(parameters)
        plan = self._plans.get(name, [])
        running = _Pass(plan, self._precision)
        running.send_statistics(self._buckets(statistics))
        self._current = running
        try:
            yield
        finally:
            self._current = None
        with torch.no_grad():
            late = (p for p in reversed(parameters) if p.grad is not None)
            for bucket in self._buckets(late):
                running.send(bucket)
            running.finish()
        made = [p for p in reversed(parameters) if p.grad is not None]
        if sum(map(len, plan)) != len(made) or any(p.grad is None for b in plan for p in b):
            self._plans[name] = self._buckets(made)

    def _hook(self, parameters: Sequence[Tensor]) -> None:
        """Ask autograd to tell, once in every backward pass, when a gradient is complete."""
        for p in parameters:
            if p.requires_grad and id(p) not in self._hooked:
                self._hooked.add(id(p))
                p.register_post_accumulate_grad_hook(self._made)

    @torch.no_grad()
    def _made(self, parameter: Tensor) -> None:
        if self._current is not None:
            self._current.made(parameter)

    def _buckets(self, tensors: Iterable[Tensor]) -> list[list[Tensor]]:
        """The tensors in buckets, in their order. A bucket has tensors of one type, and is closed
        when it holds enough bytes."""
        closed: list[list[Tensor]] = []
        held: dict[torch.dtype, list[Tensor]] = {}
        room: dict[torch.dtype, int] = {}
        for tensor in tensors:
            kind = tensor.dtype
            held.setdefault(kind, []).append(tensor)
            room[kind] = room.get(kind, self._bucket_bytes) - tensor.numel() * tensor.element_size()
            if room[kind] <= 0:
                closed.append(held.pop(kind))
                del room[kind]
        return closed + list(held.values())


class _Pass:
    """One backward pass: sends the buckets of a plan, in their order, and waits for all."""

    def __init__(self, plan: Sequence[Sequence[Tensor]], precision: ReducePrecision) -> None:
        self._plan, self._precision = plan, precision
        self._bucket_of = {id(p): i for i, bucket in enumerate(plan) for p in bucket}
        self._to_come = [len(bucket) for bucket in plan]
        self._next = 0
        self._transfers: list[tuple[Sequence[Tensor], _Transfer]] = []
        self._statistics: list[tuple[Sequence[Tensor], _Transfer]] = []

    def send_statistics(self, buckets: Iterable[Sequence[Tensor]]) -> None:
        """Begin to average these tensors, in their own precision."""
        for bucket in buckets:
            self._statistics.append((bucket, _InFull(bucket)))

    def made(self, parameter: Tensor) -> None:
        """Send all buckets that are complete now, unless one before them is not. So all workers
        send the same messages in the same order, as they must."""
        place = self._bucket_of.get(id(parameter))
        if place is None:
            return  # not in the plan: it is sent at the end
        self._to_come[place] -= 1
        while self._next < len(self._plan) and not self._to_come[self._next]:
            self.send(self._plan[self._next])
            self._next += 1

    def send(self, bucket: Sequence[Tensor]) -> None:
        """Begin to average the gradients of these parameters, which have none until `finish`."""
        gradients = [p.grad for p in bucket if p.grad is not None]
        transfer = _InFull(gradients) if self._precision == "full" else _InBf16(gradients)
        for p in bucket:
            p.grad = None
        self._transfers.append((bucket, transfer))
        if len(self._transfers) > _AHEAD:
            self._transfers[-1 - _AHEAD][1].turn()

    def finish(self) -> None:
        """Wait until all gradients and statistics are averaged."""
        for _, transfer in self._transfers:
            transfer.turn()
        for bucket, transfer in self._transfers:
            for p, mean in zip(bucket, transfer.means(), strict=True):
                p.grad = mean.to(p.dtype)
        for tensors, transfer in self._statistics:
            torch._foreach_copy_(list(tensors), transfer.means())


class _Transfer(Protocol):
    """Tensors on their way to become their means over the workers."""

    def turn(self) -> None:
        """Wait for what the other workers sent, and send back what becomes of it."""

    def means(self) -> list[Tensor]:
        """Wait for the means, which have the shapes and strides of the tensors."""


class _InFull:
    """Tensors of one type, summed by one all-reduce in that type."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._flat = tensors[0].new_empty(sum(t.numel() for t in tensors))
        self._means = _pack(self._flat, tensors)
        self._work = dist.all_reduce(self._flat, async_op=True)

    def turn(self) -> None:
        pass

    def means(self) -> list[Tensor]:
        self._work.wait()
        self._flat /= dist.get_world_size()
        return self._means


class _InBf16:
    """Tensors rounded to bfloat16. Every worker gets one share of all workers' tensors, sums it in
    float32 in the order of their ranks, and sends its mean to all, rounded again.

    So there are two roundings, where an all-reduce in bfloat16 would round at each worker. Of
    numbers g with mean m, the error is at most 2^-8 (mean |g| + |m|), but for terms of 2^-16.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._world, self._turned = dist.get_world_size(), False
        count = sum(t.numel() for t in tensors)
        share = -(-count // self._world)
        self._flat = tensors[0].new_zeros(share * self._world, dtype=torch.bfloat16)
        self._means = _pack(self._flat, tensors)
        self._shares = torch.empty_like(self._flat)
        self._work = dist.all_to_all_single(self._shares, self._flat, async_op=True)

    def turn(self) -> None:
        if self._turned:
            return
        self._turned = True
        self._work.wait()
        total = self._shares.view(self._world, -1).sum(0, dtype=torch.float32)
        self._own = (total / self._world).to(torch.bfloat16)
        self._work = dist.all_gather_into_tensor(self._flat, self._own, async_op=True)

    def means(self) -> list[Tensor]:
        self._work.wait()
        return self._means


def _pack(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy tensors side by side into `flat`; returns their copies, with their strides."""
    copies, place = [], 0
    for t in tensors:
        copies.append(flat.as_strided(t.shape, t.stride(), place))
        place += t.numel()
    torch._foreach_copy_(copies, list(tensors))
    return copies
