"""Collectives over the training workers. In a single process, none of them changes anything."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist

# This module must be imported before there is a process group: the defaults of its functions keep
# the group that exists at its first import. Without this line, the first step of an optimizer would
# import it; the group would then never end, and its threads sometimes abort the process at exit.
import torch.distributed.nn.functional
from torch import Tensor

from gan_train.nn.fingerprint import sums


def active() -> bool:
    """True when several workers train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def all_sum(values: Tensor) -> Tensor:
    """Replace values by their sum over the workers, in place, and return them."""
    if active():
        dist.all_reduce(values)
    return values


def all_least(values: Tensor) -> Tensor:
    """Replace values by their least over the workers, in place, and return them."""
    if active():
        dist.all_reduce(values, op=dist.ReduceOp.MIN)
    return values


def gather(values: Tensor) -> Tensor:
    """The tensors [n, ...] of all workers as one [n * workers, ...], in the order of their ranks.
    Every worker gets it; all tensors must have the same shape and type."""
    if not active():
        return values
    gathered = values.new_empty(dist.get_world_size() * len(values), *values.shape[1:])
    dist.all_gather_into_tensor(gathered, values.contiguous())
    return gathered


def from_first_worker(data: bytes, device: torch.device) -> bytes:
    """The `data` of rank 0, on every worker. The `data` of other ranks is ignored."""
    if not active():
        return data
    size = torch.tensor(len(data), device=device)
    dist.broadcast(size, 0)
    buffer = torch.zeros(int(size), dtype=torch.uint8, device=device)
    if len(data) == len(buffer) > 0:
        buffer = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)
    if len(buffer):
        dist.broadcast(buffer, 0)
    return buffer.cpu().numpy().tobytes()


def any_worker(flag: bool, device: torch.device) -> bool:
    """True on every worker if `flag` is true on at least one."""
    if not active():
        return flag
    value = torch.tensor([float(flag)], device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def broadcast_text(text: str, device: torch.device) -> str:
    """The text of rank 0, on every worker. The texts of other ranks are ignored."""
    if not active():
        return text
    message = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    length = torch.tensor([len(message)], device=device)
    dist.broadcast(length, 0)
    if dist.get_rank() != 0:
        message = message.new_empty(int(length.item()))
    dist.broadcast(message, 0)
    return bytes(message.tolist()).decode()


def barrier() -> None:
    """Wait for all workers."""
    if active():
        dist.barrier()


def end() -> None:
    """Wait for all workers, then leave their group."""
    if active():
        dist.barrier()
        dist.destroy_process_group()


def assert_identical(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Raise RuntimeError unless every worker holds these tensors bit for bit."""
    if not active():
        return
    mine = sums(tensors).to(device)
    low, high = mine.clone(), mine.clone()
    dist.all_reduce(low, op=dist.ReduceOp.MIN)
    dist.all_reduce(high, op=dist.ReduceOp.MAX)
    if not torch.equal(low, high):
        raise RuntimeError(
            "the workers' parameters differ: an update was not the same on all of them. "
            "Resume from the last checkpoint; if it happens again, suspect a worker's hardware"
        )
