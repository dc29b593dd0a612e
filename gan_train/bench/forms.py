"""The ways in which the benchmark computes the same training step, to compare their speed.

A form is a precision, a memory layout and, if asked for, another way to compute a part of the step,
for which functions of modules are replaced by others with the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch

from gan_train.bench.options import OTHER_WAYS
from gan_train.families.stylegan import family, plain, resampling, synthesis
from gan_train.nn import convolution
from gan_train.training import trainer
from gan_train.training.optimizers import build_optimizer


class Replaced(NamedTuple):
    """The function `name` of a module, and the function `by` which it is replaced."""

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


OWN_FAKES = (Replaced(family, "shares_fakes", lambda config: False),)


def _all_literal(convolve: plain.Convolve) -> tuple[Replaced, ...]:
    """Replacements for the modulated convolution, by the literal one on `convolve`, for all
    resampling, and for fakes that D shares."""
    by = partial(plain.literal_modulated_conv, convolve)
    return (Replaced(synthesis, "modulated_conv", by), *RESAMPLING, *OWN_FAKES)


INSTEAD: dict[str, tuple[Replaced, ...]] = {
    "grouped": _all_literal(plain.convolve_grouped),
    "scaled": _all_literal(plain.convolve_scaled),
    "demodulation": (
        Replaced(synthesis, "demodulation_deviations", plain.demodulation_deviations),
    ),
    "sums": (Replaced(synthesis, "add_bias_and_noise_", plain.add_bias_and_noise),),
    "resampling": RESAMPLING,
    "own_fakes": OWN_FAKES,
    "derivatives": (Replaced(convolution, "uses_own_derivatives", _own_elsewhere),),
    "optimizer": (Replaced(trainer, "build_optimizer", partial(build_optimizer, fused=False)),),
}
"""The functions that each choice of `--instead` replaces; `options.OTHER_WAYS` describes them."""
assert INSTEAD.keys() == OTHER_WAYS.keys()
WHOLE = ("grouped", "scaled")
"""The ways that change all of StyleGAN2's convolutions; each of the others changes one thing."""
OF_STYLEGAN2 = tuple(name for name in INSTEAD if name not in ("derivatives", "optimizer"))
"""The ways that only StyleGAN2 has."""


@dataclass(frozen=True)
class Form:
    """One way to compute the step; `instead` is a name of `INSTEAD`, or None for the usual way."""

    precision: str
    channels_last: bool
    instead: str | None = None

    def __str__(self) -> str:
        layout = "channels_last" if self.channels_last else "contiguous"
        return f"{self.precision} {self.instead or layout}"

    @property
    def dtype(self) -> torch.dtype:
        """The type in which convolutions run."""
        return torch.bfloat16 if self.precision == "bf16" else getattr(torch, self.precision)

    @contextmanager
    def active(self) -> Iterator[None]:
        """A context in which the step is computed in this form. Functions of modules are replaced
        for all threads, and restored at the end."""
        with ExitStack() as stack:
            for module, name, by in INSTEAD[self.instead] if self.instead else ():
                stack.callback(setattr, module, name, getattr(module, name))
                setattr(module, name, by)
            yield


def forms(precisions: Sequence[str], layouts: Sequence[str], instead: Sequence[str]) -> list[Form]:
    """The forms to compare: every precision in every layout, then every way of `instead` in every
    precision.

    A way in `WHOLE` is contiguous; any other has the first of the layouts.
    """
    first = layouts[0] == "channels_last"
    found = [Form(p, layout == "channels_last") for p in precisions for layout in layouts]
    return found + [
        Form(p, first and name not in WHOLE, name) for p in precisions for name in instead
    ]
