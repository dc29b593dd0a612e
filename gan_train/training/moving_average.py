"""Exponential moving averages of weights, with a half-life counted in images."""

from __future__ import annotations

import copy

import torch

from gan_train.adversary import Adversary


def decay(batch: int, nimg: int, half_life: float, ramp: float | None) -> float:
    """The weight of the old average after a step of `batch` images: 0.5^(batch / half-life).

    The half-life, in images, is at most `ramp * nimg` (Karras et al. 2020, arXiv 2006.06676,
    appendix B), so that the random initial weights soon lose their influence. A half-life of 0
    gives 0.
    """
    if ramp is not None:
        half_life = min(half_life, ramp * nimg)
    return 0.5 ** (batch / half_life) if half_life > 0 else 0.0


def image_maker(adversary: Adversary) -> Adversary:
    """A copy of the adversary for making images. It has only the networks that the adversary names
    in `averaged`, so no discriminator, pool or content network."""
    others = [name for name, _ in adversary.named_children() if name not in adversary.averaged]
    copied = copy.deepcopy(adversary, {id(getattr(adversary, name)): None for name in others})
    for name in others:
        delattr(copied, name)
    return copied.eval().requires_grad_(False)


class AveragedWeights:
    """An adversary that makes images with the moving averages of its networks."""

    def __init__(self, adversary: Adversary) -> None:
        self.adversary = image_maker(adversary)
        self._pairs = [
            (getattr(self.adversary, name), getattr(adversary, name)) for name in adversary.averaged
        ]

    @torch.no_grad()
    def update(self, beta: float) -> None:
        """Set average = beta average + (1 - beta) weights; buffers are copied."""
        for average, live in self._pairs:
            torch._foreach_lerp_(list(average.parameters()), list(live.parameters()), 1 - beta)
            for a, b in zip(average.buffers(), live.buffers(), strict=True):
                a.copy_(b)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors of the averaged networks, named as in the adversary."""
        return {
            f"{name}.{key}": value
            for name in self.adversary.averaged
            for key, value in getattr(self.adversary, name).state_dict().items()
        }

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Load tensors that `state_dict` returned; names and shapes must match exactly."""
        own = self.state_dict()
        assert own.keys() == state.keys(), sorted(own.keys() ^ state.keys())
        for key, value in own.items():
            value.copy_(state[key])
