"""Gradients are averaged in buckets beside the backward pass, and exactly as one message would."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from gan_train.nn.collectives import assert_identical
from gan_train.nn.losses import r1_penalty
from gan_train.training.averaging import GradientAverage
from tests.training import run_workers


def _network() -> torch.nn.Sequential:
    """Convolutions whose filters lie channels-last, and whose last layer is used twice."""
    torch.manual_seed(3)
    shared = torch.nn.Conv2d(5, 5, 3, padding=1)
    layers = torch.nn.Conv2d(2, 5, 3), torch.nn.Tanh(), shared, torch.nn.Tanh(), shared
    return torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)


def _images() -> Tensor:
    torch.manual_seed(10 + dist.get_rank())
    return torch.randn(4, 2, 6, 6)


def _plain(network: torch.nn.Module, x: Tensor) -> Tensor:
    return network(x).square().mean()


def _penalty(network: torch.nn.Module, x: Tensor) -> Tensor:
    return r1_penalty(lambda y: network(y).flatten(1).sum(dim=1), x)


def _gradients(network: torch.nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in network.parameters()]


def _expected(network: torch.nn.Module, loss: Callable[..., Tensor]) -> list[Tensor | None]:
    """The mean of the workers' gradients as one message after the backward pass makes it."""
    loss(network, _images()).backward()
    found = [g for g in _gradients(network) if g is not None]
    flat = torch.cat([g.flatten() for g in found])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    means = iter(flat.split([g.numel() for g in found]))
    expected = [None if p.grad is None else next(means).view_as(p) for p in network.parameters()]
    network.zero_grad()
    return expected


def _same(found: list[Tensor | None], expected: list[Tensor | None]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


def _is_exact() -> None:
    for bucket_bytes in (1, 900, 1 << 30):
        network, average = _network(), GradientAverage(bucket_bytes=bucket_bytes)
        parameters = list(network.parameters())
        statistic = torch.tensor(float(dist.get_rank()))
        for loss in (_plain, _penalty, _plain, _penalty):  # the penalty gives the last bias none
            expected = _expected(network, loss)
            statistic.fill_(dist.get_rank())
            with average.of_backward(loss.__name__, parameters, [statistic]):
                loss(network, _images()).backward()
            assert _same(_gradients(network), expected), (bucket_bytes, loss)
            assert statistic == 0.5
            assert all(p.grad is None or p.grad.stride() == p.stride() for p in parameters)
            network.zero_grad()


def test_two_workers_get_the_bits_of_one_message(tmp_path: Path) -> None:
    run_workers(2, tmp_path, _is_exact)


def _changing_sets() -> None:
    """Under one name, gradients appear that were not there before, and others are missing."""
    network, average = _network(), GradientAverage(bucket_bytes=1)
    first, last = network[0], network[4]
    for trained in ([first], [first, last], [last], [first, last], [first]):
        for layer in (first, last):
            layer.requires_grad_(layer in trained)
        expected = _expected(network, _plain)
        with average.of_backward("any", list(network.parameters())):
            _plain(network, _images()).backward()
        assert _same(_gradients(network), expected), trained
        network.zero_grad()


def test_parameters_may_lack_a_gradient_now_and_then(tmp_path: Path) -> None:
    run_workers(2, tmp_path, _changing_sets)


def _beside() -> None:
    network, average = _network(), GradientAverage(bucket_bytes=1)
    parameters = list(network.parameters())
    sent: list[int] = []
    seen: list[list[int]] = []
    reduce = dist.all_reduce

    def noted(tensor: Tensor, **how: bool) -> dist.Work | None:
        sent.append(tensor.numel())
        return reduce(tensor, **how)

    dist.all_reduce = noted
    parameters[0].register_hook(lambda gradient: seen.append(list(sent)))
    for _ in range(2):
        sent.clear()
        _plain(network, _images()).backward()  # a micro-batch that is not the last one
        with average.of_backward("plain", parameters):
            _plain(network, _images()).backward()
        assert sent == [5, 225, 5, 90], "bias and filters of the last layer, then of the first"
    first_time, second_time = seen[:2], seen[2:]
    assert first_time == [[], []], "which gradients there will be is not known yet"
    assert second_time[0] == [] and second_time[1][:2] == [5, 225]


def test_messages_travel_beside_the_last_backward_pass(tmp_path: Path) -> None:
    """From the second time on, and the last layer's first, in the order of the parameters."""
    run_workers(2, tmp_path, _beside)


def _micro_batches() -> None:
    network, average = _network(), GradientAverage(bucket_bytes=100)
    for _ in range(3):
        expected = [2 * g for g in _expected(network, _plain) if g is not None]
        _plain(network, _images()).backward()
        with average.of_backward("plain", list(network.parameters())):
            _plain(network, _images()).backward()
        assert _same(_gradients(network), expected)
        network.zero_grad()


def test_gradients_of_earlier_micro_batches_are_averaged_too(tmp_path: Path) -> None:
    run_workers(2, tmp_path, _micro_batches)


def _in_bf16() -> None:
    """7 numbers a bucket, which three workers cannot share evenly."""
    layers = [torch.nn.Parameter(torch.zeros(7)) for _ in range(40)]
    average, rank = GradientAverage("bf16", bucket_bytes=28), dist.get_rank()
    generator = torch.Generator().manual_seed(rank)
    for _ in range(3):
        gradients = (
            torch.randn(40, 7, generator=generator) * 10 ** torch.linspace(-9, 9, 40)[:, None]
        )
        for p in layers:
            p.grad = None
        with average.of_backward("any", layers):
            sum((p * g).sum() for p, g in zip(layers, gradients, strict=True)).backward()
        means = torch.stack([p.grad for p in layers if p.grad is not None])
        assert means.dtype == torch.float32

        everyone = torch.stack([torch.empty_like(gradients) for _ in range(3)])
        dist.all_gather(list(everyone), gradients)
        exact = everyone.double().mean(dim=0)
        bound = 2**-8 * (everyone.double().abs().mean(dim=0) * 1.01 + exact.abs())
        error = (means - exact).abs()
        assert (error <= bound).all()
        assert (error > 0).any(), "nothing was rounded"
        assert_identical([means], means.device)


def test_messages_in_bf16_round_twice(tmp_path: Path) -> None:
    """The error against the mean in float64 is bounded by two roundings to eight bits, on any
    number of workers, and all workers get the same bits."""
    run_workers(3, tmp_path, _in_bf16)


def test_one_process_keeps_its_gradients() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    with GradientAverage("bf16").of_backward("any", [weight]):
        (weight * 1.001).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, torch.full((3,), 1.001))
