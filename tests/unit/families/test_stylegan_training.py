"""Losses, lazy regularisation and running statistics of the StyleGAN family."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_train.adversary import Batch, Clock, ImageShape, Losses
from gan_train.families.stylegan import synthesis
from gan_train.families.stylegan.build import StyleGANConfig
from gan_train.families.stylegan.family import StyleGAN
from gan_train.families.stylegan.noise import noise_maps
from gan_train.nn.augment import augment
from gan_train.rng import BatchRandom
from tests.unit.families.settings import settings_at
from tests.unit.families.small import batch_of, draws, halves, small

close = torch.testing.assert_close
GREY8 = ImageShape(1, 8, ("A", "B"))
STRONG = {"augment": "fixed", "augment_p": 0.9}

# ---- lazy regularisation -----------------------------------------------------------------------


def test_rates_and_betas_make_up_for_the_extra_steps() -> None:
    """Karras et al. 2019, appendix B: k / (k + 1), with k 4 for G and 16 for D."""
    family = small(lr=0.002, betas=(0.1, 0.99))
    (stage,) = family.stages()
    specs = family.optimizers()
    assert specs["G"].nets == ("generator",) and specs["D"].nets == ("discriminator",)
    for name, ratio in (("G", 4 / 5), ("D", 16 / 17)):
        assert specs[name].settings.lr == pytest.approx(0.002 * ratio)
        assert specs[name].settings.betas == pytest.approx((0.1**ratio, 0.99**ratio))
        assert specs[name].eps == 1e-8 and specs[name].kind == "adam"
        assert settings_at(family, name, stage).lr == pytest.approx(0.002 * ratio)
    assert [(p.name, p.optimizer, p.every) for p in stage.phases] == [
        ("G", "G", 1), ("G_path", "G", 4), ("D", "D", 1), ("D_r1", "D", 16),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "phases", "ratios"),
    [
        ({"path_length_weight": 0}, ["G", "D", "D_r1"], (1, 16 / 17)),
        ({"r1_gamma": 0}, ["G", "G_path", "D"], (4 / 5, 1)),
        ({"r1_every": 1, "path_length_every": 1}, ["G", "D"], (1, 1)),
        ({"generation": 1}, ["G", "D", "D_r1"], (1, 16 / 17)),
    ],
)
def test_what_is_left_out_scales_nothing(
    changes: dict[str, object], phases: list[str], ratios: tuple[float, float]
) -> None:
    family = small(**changes)
    stage = family.stages()[-1]
    assert [p.name for p in stage.phases] == phases
    for name, ratio in zip("GD", ratios, strict=True):
        assert family.optimizers()[name].settings.betas == pytest.approx((0, 0.99**ratio))
        assert settings_at(family, name, stage).lr == pytest.approx(0.002 * ratio)


def test_a_regulariser_of_every_step_is_a_term_of_the_loss() -> None:
    """One update of each network a step, as the first paper has R1: not two."""
    family = small(GREY8, r1_every=1, r1_gamma=3.0, path_length_every=1)
    batch = batch_of(family)
    found = family.loss_d(batch, draws(), Clock())
    real = batch["image"].clone().requires_grad_()
    (slope,) = torch.autograd.grad(family.discriminate(real, batch["label"]).sum(), real)
    penalty = 3.0 / 2 * slope.square().sum(dim=(1, 2, 3)).mean()
    lazy = small(GREY8).loss_d(batch, draws(), Clock())
    close(found.terms, {"D": lazy.terms["D"], "r1": penalty})
    assert found.metrics.keys() == lazy.metrics.keys()
    found = family.loss_g(batch, draws(), Clock())
    close(found.terms["G"], small(GREY8).loss_g(batch, draws(), Clock()).terms["G"])
    assert found.terms.keys() == {"G", "path"} and found.metrics.keys() == {"path_length"}


def test_rates_by_resolution() -> None:
    family = small(generation=1, lr=0.001, lr_by_resolution={16: 0.003})
    rates = {s.name: settings_at(family, "D", s).lr for s in family.stages()}
    expected = {"8": 0.001, "16-fade": 0.003, "16": 0.003}
    assert rates == pytest.approx({name: lr * 16 / 17 for name, lr in expected.items()})


# ---- losses, with the formula written out ------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, STRONG])
def test_loss_of_the_generator(changes: dict[str, object]) -> None:
    """softplus(-D(augmented fake))."""
    family = small(**changes)
    batch, rng = batch_of(family), draws()
    fake = family.synthesise(family.mix_styles(batch["label"], rng), rng)
    if changes:
        fake = augment(fake, 0.9, rng)
    expected = F.softplus(-family.discriminate(fake, batch["label"])).mean()
    found = family.loss_g(batch, draws(), Clock()).terms
    close(found, {"G": expected})
    found["G"].backward()
    assert all(p.grad is not None for p in family.generator.parameters())


@pytest.mark.parametrize("changes", [{}, STRONG])
def test_loss_of_the_discriminator(changes: dict[str, object]) -> None:
    """softplus(-D(real)) + softplus(D(fake)), each augmented on its own; G is left alone."""
    family = small(**changes)
    batch, rng = batch_of(family), draws()
    fake = family.synthesise(family.mix_styles(batch["label"], rng), rng)
    real = batch["image"]
    if changes:
        real, fake = augment(torch.cat([real, fake]), 0.9, rng.repeat(2)).chunk(2)
        assert not torch.allclose(real, batch["image"])
    real_logit, fake_logit = (family.discriminate(x, batch["label"]) for x in (real, fake))
    expected = F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean()
    losses = family.loss_d(batch, draws(), Clock())
    close(losses.terms, {"D": expected})
    close(losses.metrics["logit/real_sign"], real_logit.sign().mean().detach())
    losses.terms["D"].backward()
    assert all(p.grad is None for p in family.generator.parameters())
    assert all(p.grad is not None for p in family.discriminator.parameters())


@pytest.mark.parametrize(
    "changes", [{}, {"generation": 1}, {"r1_every": 1, "path_length_every": 1}]
)
def test_shared_fakes(changes: dict[str, object]) -> None:
    """D's loss, with the very images that G's loss was taken of; G gets no gradient from it."""
    if changes.get("generation") == 1:
        changes = changes | {"start_resolution": 16}
    family, own = small(shared_fakes=True, **changes), small(**changes)
    batch = batch_of(family)
    g, d = (p for p in family.stages()[-1].phases if p.name in "GD")
    assert g.leaves == d.takes == ("fake",)
    found = g.loss(batch, draws(), Clock())
    close(found.terms, own.loss_g(batch, draws(), Clock()).terms)
    rng = draws()
    fake = own.synthesise(own.mix_styles(batch["label"], rng), rng)
    close(found.leaves, {"fake": fake.detach()})
    assert not found.leaves["fake"].requires_grad

    losses = d.loss(batch | found.leaves, draws(stream="D"), Clock())
    real_logit, fake_logit = (own.discriminate(x, batch["label"]) for x in (batch["image"], fake))
    close(losses.terms["D"], F.softplus(-real_logit).mean() + F.softplus(fake_logit).mean())
    losses.terms["D"].backward()
    assert all(p.grad is None for p in family.generator.parameters())
    assert not any(p.leaves or p.takes for p in own.stages()[-1].phases)


@pytest.mark.parametrize("changes", [{}, STRONG])
def test_r1(changes: dict[str, object]) -> None:
    """gamma / 2 |grad D(augmented real)|^2, by the image before augmentation."""
    family = small(r1_gamma=3.0, **changes)
    batch = batch_of(family)
    real = batch["image"].clone().requires_grad_(True)
    shown = augment(real, 0.9, draws()) if changes else real
    (gradient,) = torch.autograd.grad(family.discriminate(shown, batch["label"]).sum(), real)
    expected = 3.0 / 2 * gradient.square().sum(dim=(1, 2, 3)).mean()
    found = family.loss_r1(batch, draws(), Clock()).terms
    close(found, {"r1": expected})


def test_path_lengths_are_those_of_the_jacobian(monkeypatch: pytest.MonkeyPatch) -> None:
    """weight x mean (|J^T y| - a)^2 over every second image, J and y written out; the
    square is a mean over the layers' styles."""
    family = small(GREY8, path_length_weight=5.0, path_length_every=3)
    family.path_length_mean.fill_(0.7)
    batch = batch_of(family, 8)
    rng = draws(8)
    chosen = slice(0, None, 2)
    part = rng.select(chosen)
    ws = family.mix_styles(batch["label"][chosen], part).detach()
    convolutions = [m for m in family.generator.modules() if isinstance(m, synthesis.StyledConv)]
    maps = noise_maps(part, [m.noise_const for m in convolutions])
    y = part.normal(1, 8, 8).double() / 8  # 1 / sqrt(H W)
    lengths = []
    for i in range(4):
        own = [m[i : i + 1] for m in maps]
        with monkeypatch.context() as patch:
            patch.setattr(synthesis, "noise_maps", lambda noise, stored, own=own: own)
            jacobian = torch.autograd.functional.jacobian(
                lambda w: family.synthesise(w[None], "none").flatten(), ws[i]
            )  # [H W, num_ws, w_dim]
        product = torch.einsum("p,pld->ld", y[i].flatten(), jacobian)
        lengths.append(product.square().sum(dim=1).mean().sqrt())
    found = family.loss_path(batch, draws(8), Clock())
    expected = 5.0 * (torch.stack(lengths) - 0.7).square().mean()
    close(found.terms, {"path": expected})
    close(found.metrics["path_length"], torch.stack(lengths).mean())
    found.terms["path"].backward()
    without = {n for n, p in family.generator.named_parameters() if p.grad is None}
    # what is added after the last style, and cannot change the length
    assert without <= {f"synthesis.b{r}.torgb.bias" for r in (4, 8)}


# ---- running statistics ------------------------------------------------------------------------


def step(family: StyleGAN, clock: Clock, parts: list[Batch], start: int = 0) -> None:
    """What the trainer does with the family's statistics in one step, without the updates."""
    family.update_statistics(clock)
    for loss in (family.loss_g, family.loss_path, family.loss_d):
        at = start
        for part in parts:
            n = len(part["image"])
            loss(part, draws(n, loss.__name__, at), clock)
            at += n


def test_mean_style_follows_the_batch() -> None:
    """mean + (1 - decay) (batch mean - mean), batch after batch, styles unmixed."""
    family = small(w_mean_decay=0.9)
    mean = family.generator.mapping.w_avg.clone()
    batch = batch_of(family)
    for number in range(3):
        family.loss_g(batch, draws(stream=f"{number}"), Clock())
        close(family.generator.mapping.w_avg, mean)  # taken in by `update_statistics`
        w = family.styles(draws(stream=f"{number}").normal(8), batch["label"])
        family.update_statistics(Clock(number + 1, 8 * number + 8))
        mean = mean + 0.1 * (w.mean(dim=0).detach() - mean)
        close(family.generator.mapping.w_avg, mean)
    family.update_statistics(Clock(4, 32))  # nothing was measured since
    close(family.generator.mapping.w_avg, mean)


def test_mean_path_length_follows_the_batch() -> None:
    family = small(path_length_decay=0.01)
    batch, mean = batch_of(family), 0.0
    for number in range(3):
        losses = family.loss_path(batch, draws(stream=f"{number}"), Clock())
        family.update_statistics(Clock(number + 1, 8 * number + 8))
        mean += 0.01 * (float(losses.metrics["path_length"]) - mean)
        assert float(family.path_length_mean) == pytest.approx(mean, rel=1e-6)
    assert mean > 0
    family.update_statistics(Clock(4, 32))
    assert float(family.path_length_mean) == pytest.approx(mean, rel=1e-6)
    assert family.statistics()["path_length_mean"] == pytest.approx(mean)


def judging(family: StyleGAN, real: float) -> Callable[..., Losses]:
    """loss_d with a discriminator whose every logit has this sign."""
    family.discriminator.forward = lambda image, label: image.flatten(1).mean(dim=1) * 0 + real
    return family.loss_d


def test_augmentation_grows_by_the_rule() -> None:
    """Karras et al. 2020, section 3: every 4 steps by the images since, over 500 kimg; up while the
    mean sign of D(real) is above the target, else down, never below 0."""
    family = small(augment="ada", augment_kimg=1.0)
    batch, nimg, seen = batch_of(family), 0, []
    for number, sign in enumerate([1.0] * 9 + [-1.0] * 12):
        family.update_statistics(Clock(number, nimg))
        seen.append(round(float(family.augment_p), 6))
        judging(family, sign)(batch, draws(), Clock(number, nimg))
        nimg += 8
    up = 4 * 8 / 1000
    expected = [0.0] * 4 + [up] * 4 + [2 * up] * 4  # one of the next four steps was still above
    assert seen == pytest.approx([*expected, *[up] * 4, *[0.0] * 5])
    assert family.statistics()["augment_p"] == pytest.approx(0.0)


@pytest.mark.parametrize("share", [0.5, 0.75])
def test_the_target_is_a_mean_of_signs(share: float) -> None:
    """Sign +1 for a share of the reals: mean sign 2 share - 1, against the target .25."""
    family = small(augment="ada", augment_target=0.25, augment_p=0.5, augment_kimg=1.0)
    batch = batch_of(family)
    signs = torch.where(torch.arange(8) < 8 * share, 3.0, -0.01).double()
    family.discriminator.forward = lambda image, label: signs.repeat(2)
    family.loss_d(batch, draws(), Clock(3, 24))
    family.update_statistics(Clock(4, 32))
    change = 32 / 1000 if share == 0.75 else -32 / 1000
    assert float(family.augment_p) == pytest.approx(0.5 + change)


def test_a_fixed_strength_stays() -> None:
    family = small(**STRONG)
    for number in range(9):
        judging(family, 1.0)(batch_of(family), draws(), Clock(number, 8 * number))
        family.update_statistics(Clock(number + 1, 8 * number + 8))
    assert float(family.augment_p) == pytest.approx(0.9)


EVERYTHING = {
    "augment": "ada",
    "augment_kimg": 0.1,
    "augment_p": 0.3,
    "augment_target": 0.1,
    "w_mean_decay": 0.5,
    "path_length_decay": 0.3,
    "augment_every": 3,
}


def statistics(family: StyleGAN) -> dict[str, Tensor]:
    names = ("generator.mapping.w_avg", "path_length_mean", "augment_p", "augment_nimg")
    return {name: family.state_dict()[name].clone() for name in names}


@pytest.mark.parametrize("loss", ["loss_g", "loss_path", "loss_d", "loss_r1"])
def test_gradients_do_not_depend_on_micro_batches(loss: str) -> None:
    """With noise, mixing and strong augmentation, to rounding in float64."""
    for start in range(0, 160, 16):
        family, gradients = small(**STRONG), []
        batch = batch_of(family, 16)
        for parts in ([batch], halves(batch)):
            at = start
            for part in parts:
                n = len(part["image"])
                (term,) = getattr(family, loss)(part, draws(n, "x", at), Clock()).terms.values()
                (term / len(parts)).backward()
                at += n
            gradients.append([p.grad.clone() for p in family.parameters() if p.grad is not None])
            family.zero_grad(set_to_none=True)
        for a, b in zip(*gradients, strict=True):
            close(a, b, rtol=0, atol=1e-11 * float(a.abs().max()))


def test_statistics_do_not_depend_on_micro_batches() -> None:
    found = []
    for cut in (lambda batch: [batch], halves):
        family = small(**EVERYTHING)
        before = statistics(family)
        for number in range(4):
            parts = cut(batch_of(family))
            step(family, Clock(number, 8 * number), parts, 8 * number)
        family.update_statistics(Clock(4, 32))
        found.append(statistics(family))
        assert all(not torch.equal(before[n], value) for n, value in found[-1].items())
    close(found[0], found[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("cut", range(1, 7))
def test_statistics_go_on_from_a_state_dict(cut: int) -> None:
    """Wherever in the interval of the augmentation; and where they are taken in once more."""
    whole, family = small(**EVERYTHING), small(**EVERYTHING)
    batch = batch_of(whole)
    for number in range(8):
        step(whole, Clock(number, 8 * number), [batch], 8 * number)
        if number == cut:
            saved = family.state_dict()
            family = small(**EVERYTHING, channel_base=64)
            family.load_state_dict(saved)
            family.update_statistics(Clock(number, 8 * number))
        step(family, Clock(number, 8 * number), [batch], 8 * number)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, family.state_dict()[name]), name


def test_the_workers_average_what_was_measured() -> None:
    """Two families, each with half of the batch: the means of their running buffers are those of
    one with all of it. Nothing else is averaged: stored noise and mean w are the same anyway."""
    one, pair = small(**EVERYTHING), [small(**EVERYTHING), small(**EVERYTHING)]
    batch = batch_of(one)
    step(one, Clock(), [batch])
    for rank, part in enumerate(halves(batch)):
        step(pair[rank], Clock(), [part], 4 * rank)
    for expected, a, b in zip(
        one.running_buffers(), *(f.running_buffers() for f in pair), strict=True
    ):
        close((a + b) / 2, expected)
    assert len(one.running_buffers()) == 6


# ---- what the family says of itself ------------------------------------------------------------


def test_grain_holds_the_groups_together() -> None:
    for group, shrink, grain in ((4, 2, 4), (4, 1, 4), (2, 3, 6), (1, 2, 2)):
        assert small(mbstd_group=group, path_length_shrink=shrink).grain == grain
    rng = BatchRandom(0, "x", torch.arange(8, 16))
    family = small()
    made: list[int] = []
    family.generator.register_forward_pre_hook(lambda m, given: made.append(len(given[0])))
    family.loss_path(batch_of(family), rng, Clock())
    family.loss_g(batch_of(family), rng, Clock())
    assert made == [4, 8]


def test_widths_and_defaults_follow_the_papers() -> None:
    config = StyleGANConfig()
    widths = [config.width(r) for r in (4, 8, 16, 32, 64, 128, 256, 512, 1024)]
    assert widths == [512, 512, 512, 512, 512, 256, 128, 64, 32]
    assert (config.z_dim, config.w_dim, config.mapping_layers, config.mapping_lr) == (
        512, 512, 8, 0.01,
    )  # fmt: skip
    assert (config.r1_gamma, config.path_length_weight, config.path_length_decay) == (10, 2, 0.01)
    assert (config.mixing, config.w_mean_decay, config.betas) == (0.9, 0.998, (0, 0.99))
    assert (config.augment_target, config.augment_kimg, config.augment_every) == (0.6, 500, 4)
    assert StyleGANConfig(channels={8: 3}).width(8) == 3


def test_the_networks_start_as_published() -> None:
    """Weights N(0, 1), those of the mapping over its rate; biases 0, those of the styles 1."""
    torch.manual_seed(0)
    family = StyleGANConfig(z_dim=64, w_dim=64, channel_max=64, mapping_lr=0.01).build(GREY8, 8)
    for name, parameter in family.named_parameters():
        if name.endswith("weight") and parameter.numel() > 500:
            scale = 100 if ".mapping." in name else 1
            assert abs(float(parameter.detach().std()) / scale - 1) < 0.1, name
        if name.endswith("bias"):
            expected = 1.0 if "affine" in name else 0.0
            assert (parameter == expected).all(), name
    image = family.sample(torch.randn(16, 64), None)
    assert 0.3 < float(image.detach().std()) < 3
    assert not math.isnan(float(family.discriminate(image, None).detach().sum()))
