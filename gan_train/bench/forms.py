"""The ways in which the benchmark computes the same training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch

from gan_train.bench.options import OTHER_WAYS
from gan_train.families.stylegan import plain, resampling, synthesis
from gan_train.nn import convolution
from gan_train.training import trainer
from gan_train.training.optimizers import build_optimizer


class Replaced(NamedTuple):
    """A function of a module, and what stands in for it."""

    module: ModuleType
    name: str
    by: Callable[..., Any]


_usual = convolution.uses_own_derivatives


def _own_elsewhere(x: torch.Tensor) -> bool:
    return not _usual(x)


RESAMPLING = (
    Replaced(resampling, "upsample", plain.upsample),
    Replaced(resampling, "downsample", plain.downsample),
    Replaced(resampling, "convolve_downsample", plain.convolve_downsample),
    Replaced(resampling, "upsample_convolve", plain.upsample_convolve),
)
INSTEAD: dict[str, tuple[Replaced, ...]] = {
    **{
        convolve.__name__: (
            Replaced(synthesis, "modulated_conv", partial(plain.literal, convolve)),
            *RESAMPLING,
        )
        for convolve in (plain.grouped, plain.scaled)
    },
    "demodulation": (Replaced(synthesis, "deviations", plain.deviations),),
    "sums": (Replaced(synthesis, "shifted_", plain.shifted),),
    "resampling": RESAMPLING,
    "derivatives": (Replaced(convolution, "uses_own_derivatives", _own_elsewhere),),
    "optimizer": (Replaced(trainer, "build_optimizer", partial(build_optimizer, fused=False)),),
}
assert INSTEAD.keys() == OTHER_WAYS.keys()
WHOLE = ("grouped", "scaled")
"""The whole of StyleGAN2's step in another way; the others change one thing in ours."""
OF_STYLEGAN2 = tuple(name for name in INSTEAD if name not in ("derivatives", "optimizer"))


@dataclass(frozen=True)
class Form:
    """One way to compute the same step; `instead` is what it does in another way, if anything."""

    precision: str
    channels_last: bool
    instead: str | None = None

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        return f"{self.precision} {self.instead or layout}"

    @property
    def dtype(self) -> torch.dtype:
        """What its convolutions run in."""
        return torch.bfloat16 if self.precision == "bf16" else getattr(torch, self.precision)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within, training computes in this form. For one thread alone: it replaces functions of
        modules, which are put back at the end."""
        with ExitStack() as stack:
            for module, name, by in INSTEAD[self.instead] if self.instead else ():
                stack.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, by)
            yield


def forms(precisions: Sequence[str], layouts: Sequence[str], instead: Sequence[str]) -> list[Form]:
    """All that was asked for. What changes one thing has the first of the layouts."""
    first = layouts[0] == "channels_last"
    found = [Form(p, layout == "channels_last") for p in precisions for layout in layouts]
    return found + [
        Form(p, first and name not in WHOLE, name) for p in precisions for name in instead
    ]
