"""StyleGAN2 computes what the published reference implementation computes (tests/golden)."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from gan_train.adversary import ImageShape
from gan_train.families.stylegan.build import StyleGANConfig
from gan_train.families.stylegan.family import StyleGAN, path_lengths
from gan_train.nn import losses

FILE = Path(__file__).parents[2] / "golden" / "stylegan2_32.safetensors"
Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def golden() -> Tensors:
    with safe_open(FILE, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def family(golden: Tensors) -> StyleGAN:
    with safe_open(FILE, "pt") as file:
        about = file.metadata()
    names = ("z_dim", "w_dim", "mapping_layers", "channel_base", "channel_max", "mbstd_group")
    config = StyleGANConfig(
        discriminator=about["D_architecture"], **{name: int(about[name]) for name in names}
    )
    family = config.build(ImageShape(3, int(about["resolution"])), 8).eval()
    for prefix, network in {"G.": family.generator, "D.": family.discriminator}.items():
        network.load_state_dict(
            {
                key.removeprefix(prefix): value
                for key, value in golden.items()
                if key.startswith(prefix) and not key.endswith("resample_filter")  # a constant here
            }
        )
    return family.requires_grad_(False)


def assert_golden(golden: Tensors, name: str, found: Tensor) -> None:
    """Equal to `out.<name>` to 1e-4 of its largest value."""
    expected = golden[f"out.{name}"]
    assert found.shape == expected.shape and found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.fixture(scope="module")
def ws(golden: Tensors, family: StyleGAN) -> Tensor:
    return family.styles(golden["in.z"], None)[:, None].repeat(1, family.num_ws, 1)


def discriminate(family: StyleGAN, image: Tensor) -> Tensor:
    """Logits [N]. The reference's groups of the minibatch deviation are samples that stand
    N / group apart; here they are neighbours, so the batch is put in that order and back."""
    group = family.config.mbstd_group
    order = torch.arange(len(image)).view(group, -1).T.flatten()
    return family.discriminate(image[order], None)[order.argsort()]


def test_styles(golden: Tensors, family: StyleGAN, ws: Tensor) -> None:
    assert_golden(golden, "w", ws[:, 0])
    for layer in range(family.num_ws):
        assert_golden(golden, "w_psi0.7", family.truncate(ws, 0.7)[:, layer])


def test_images(golden: Tensors, family: StyleGAN, ws: Tensor) -> None:
    assert_golden(golden, "image_const_noise", family.synthesise(ws, "const"))
    assert_golden(golden, "image_const_noise", family.sample(golden["in.z"], None))
    assert_golden(golden, "image_no_noise", family.synthesise(ws, "none"))
    mixed = ws.clone()
    mixed[:, 3:] = golden["in.w_mix_from_layer3"][:, None]
    assert_golden(golden, "image_mixed_const_noise", family.synthesise(mixed, "const"))


def test_logits_and_losses(golden: Tensors, family: StyleGAN) -> None:
    real = discriminate(family, golden["in.real"])
    fake = discriminate(family, family.sample(golden["in.z"], None))
    assert_golden(golden, "logits_real", real[:, None])
    assert_golden(golden, "logits_fake", fake[:, None])
    assert_golden(golden, "loss_G_main", losses.nonsaturating_g(fake))
    assert_golden(golden, "loss_D_main", losses.logistic_d(real, fake))


# Gradients jump where an activation is so near to zero that rounding decides its sign; one sample
# of the file has such a one (7e-7), by which float32 may be off on some processor.
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def assert_golden_gradients(golden: Tensors, name: str, found: Tensor) -> None:
    """[N] as in `assert_golden`; in float32 one sample may be off by ten times as much."""
    if found.dtype == torch.float32:
        expected = golden[f"out.{name}"]
        off = (found - expected).abs() / expected.abs().max()  # [N]
        worst = int(off.argmax())
        assert off[worst] < 1e-3
        found = found.clone()
        found[worst] = expected[worst]
    assert_golden(golden, name, found.float())


@BOTH
def test_r1(golden: Tensors, family: StyleGAN, dtype: torch.dtype) -> None:
    family = copy.deepcopy(family).to(dtype)
    real = golden["in.real"].to(dtype).requires_grad_(True)
    (gradient,) = torch.autograd.grad(discriminate(family, real).sum(), real)
    assert_golden_gradients(golden, "r1_sq_norm", gradient.square().sum(dim=(1, 2, 3)))
    penalty = losses.r1_penalty(lambda x: discriminate(family, x), real).float()
    rtol = 1e-3 if dtype == torch.float32 else 1e-4
    torch.testing.assert_close(penalty, golden["out.r1_sq_norm"].mean() / 2, rtol=rtol, atol=0)


@BOTH
def test_path_lengths(golden: Tensors, family: StyleGAN, dtype: torch.dtype) -> None:
    family = copy.deepcopy(family).to(dtype)
    w = family.styles(golden["in.z"].to(dtype), None)
    ws = w[:, None].repeat(1, family.num_ws, 1).requires_grad_(True)
    image = family.synthesise(ws, "const")
    # the file's noise is divided by sqrt(H W) already
    found = path_lengths(image, golden["in.pl_noise"].to(dtype), ws)
    assert_golden_gradients(golden, "pl_lengths", found.detach())
