"""The arguments of `gan-train bench-step` and `python -m gan_train.bench.step`.

Only the standard library is imported, so that help answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

SUMMARY = "time the training step, whole and by phase, and its share of the machine's peak"
OTHER_WAYS = {
    "grouped": "StyleGAN2 as its paper writes it: a weight of its own for every image,\n"
    "resampling with zeros between the pixels, PyTorch's derivatives, contiguous",
    "scaled": "StyleGAN2 as it is widely trained: one weight for all images, demodulation\n"
    "from a tensor of weights for every image; the rest as in grouped",
    "demodulation": "ours, but demodulation from a tensor of weights for every image",
    "sums": "ours, but bias and noise are added one by one, not as a matrix product",
    "resampling": "ours, but with zeros between the pixels and PyTorch's derivatives",
    "own_fakes": "with family.shared_fakes: ours, but D draws fakes of its own",
    "derivatives": "ours, but PyTorch's derivatives of convolutions where ours are used\n"
    "(bf16 on a CPU), and ours elsewhere",
    "optimizer": "ours, but Adam in many kernels instead of one",
}
"""The names that `--instead` takes, and what each means."""
_WAYS = "\n".join(
    f"  {name:14}{what}".replace("\n", "\n" + 16 * " ") for name, what in OTHER_WAYS.items()
)
EPILOG = f"""\
Other ways to compute a step, for --instead:
{_WAYS}

The reference, StyleGAN2 at 32 and 64 pixels:
  gan-train bench-step stylegan2-emoji-64 --resolutions 32,64 --batch 16 \\
    --precisions float32,bf16 --layouts channels_last --instead scaled,grouped \\
    --set family.z_dim=512 --set family.w_dim=512 --set family.channel_base=1024 \\
    --set family.channel_max=64 --set family.path_length_every=4 --set family.augment=none

On a GPU, each technique alone:
  gan-train bench-step stylegan2-ffhq-256-8gpu --resolutions 64,256,1024 --batch 32 \\
    --precisions float32,bf16 --layouts channels_last,contiguous \\
    --instead scaled,demodulation,sums,resampling,derivatives,optimizer"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the measurement; the recipe and its overrides are added elsewhere."""
    parser.add_argument(
        "--resolutions",
        type=lambda text: tuple(int(part) for part in text.split(",")),
        metavar="N,N",
        help="sides of the pictures, such as 32,64; default: the recipe's",
    )
    parser.add_argument(
        "--batch", type=int, metavar="N", help="global batch; default: the recipe's"
    )
    parser.add_argument(
        "--precisions",
        type=_choices("float32", "bf16", "float64"),
        metavar="P,P",
        help="float32, bf16, float64; default: the recipe's",
    )
    parser.add_argument(
        "--layouts",
        type=_choices("channels_last", "contiguous"),
        metavar="L,L",
        help="channels_last, contiguous; default: the recipe's",
    )
    parser.add_argument(
        "--instead",
        type=_choices(*OTHER_WAYS),
        default=(),
        metavar="WAY,WAY",
        help="ways to compute the step, too, and to compare with; see below",
    )
    parser.add_argument("--rounds", type=int, default=5, help="the forms take turns so many times")


def _choices(*allowed: str) -> Callable[[str], tuple[str, ...]]:
    def parts(text: str) -> tuple[str, ...]:
        found = tuple(text.split(","))
        if wrong := [part for part in found if part not in allowed]:
            raise argparse.ArgumentTypeError(f"{wrong[0]}: allowed are {', '.join(allowed)}")
        return found

    return parts
