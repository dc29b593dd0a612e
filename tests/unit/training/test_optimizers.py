"""Optimizers' moments go through a checkpoint as they are."""

from __future__ import annotations

import torch

from gan_train.runs.checkpoint import load_optimizer_state, optimizer_state
from gan_train.training.optimizers import build_optimizer
from tests.unit.families.small import small


def test_moments_and_counts_keep_their_types_and_places() -> None:
    """In float64, with parameters of one number: Adam counts its steps in float32."""
    family = small().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    spec = family.optimizers()["G"]
    before, after = build_optimizer(family, spec), build_optimizer(family, spec)
    for p in family.generator.parameters():
        p.grad = torch.sin(p.detach())
    before.step()
    load_optimizer_state(family, {"G": after}, optimizer_state(family, {"G": before}))
    assert any(p.ndim == 0 for p in before.state)
    for p, moments in before.state.items():
        for name, value in moments.items():
            found = after.state[p][name]
            assert torch.equal(found, value), name
            assert (found.dtype, found.stride()) == (value.dtype, value.stride()), name
