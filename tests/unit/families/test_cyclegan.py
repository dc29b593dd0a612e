"""CycleGAN: networks against the paper, losses against the formulas, pools against a plain list."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gan_train.adversary import Batch, Clock, ImageShape, OptimizerSettings, task_of
from gan_train.errors import UserError
from gan_train.families.cyclegan.family import CycleGAN, CycleGANConfig
from gan_train.families.cyclegan.networks import Discriminator, Generator, reflected
from gan_train.families.cyclegan.pool import ImagePool
from gan_train.nn import losses
from gan_train.rng import BatchRandom
from tests.training import run_workers
from tests.unit.families.settings import settings_at
from tests.unit.families.small import normal

close = torch.testing.assert_close
SHAPE = ImageShape(3, 16)
SHAPE_64 = ImageShape(3, 64)


def draws(start: int, count: int, stream: str = "D") -> BatchRandom:
    return BatchRandom(3, stream, torch.arange(start, start + count))


def small(**changes: object) -> CycleGAN:
    """A CycleGAN in float64 for 16x16 pixels, batch 4, from a fixed seed."""
    settings = {"width": 4, "blocks": 2, "discriminator_width": 4, "discriminator_layers": 2}
    torch.manual_seed(0)
    config = CycleGANConfig.model_validate({**settings, "pool_size": 6, **changes})
    return config.build(SHAPE, 4).double()


def batch_of(count: int = 4, seed: int = 1) -> Batch:
    """Images of both domains, in [-1, 1]."""
    a, b = normal(2, count, 3, 16, 16, seed=seed).tanh()
    return {"image": a, "other": b}


# ---- networks ----------------------------------------------------------------------------------


def test_the_mirrored_border_is_that_of_torch() -> None:
    x = normal(2, 3, 5, 7).requires_grad_(True)
    for margin in (1, 3):
        close(reflected(x, margin), F.pad(x, [margin] * 4, mode="reflect"), rtol=0, atol=0)
        weight = normal(2, 3, 5 + 2 * margin, 7 + 2 * margin, seed=2)
        (own,) = torch.autograd.grad((reflected(x, margin) * weight).sum(), x)
        padded = F.pad(x, [margin] * 4, mode="reflect")
        close(own, torch.autograd.grad((padded * weight).sum(), x)[0])
    with pytest.raises(AssertionError, match="cannot be mirrored"):
        reflected(x, 5)


@pytest.mark.parametrize(("resolution", "blocks"), [(128, 6), (256, 9)])
def test_sizes_of_the_paper(resolution: int, blocks: int) -> None:
    """c7s1-64, d128, d256, R256 six or nine times, u128, u64, c7s1-3; C64-C128-C256-C512."""
    with torch.device("meta"):
        family = CycleGANConfig().build(ImageShape(3, resolution), 1)
        image = torch.empty(1, 3, resolution, resolution)
        assert family.generator_ab(image).shape == image.shape
        side = resolution // 8 - 2  # three halvings, then twice one pixel less
        assert family.discriminator_a(image).shape == (1, side, side)
    assert len(family.generator_ab.blocks) == blocks
    convolutions = 9408 + 73728 + 294912 + blocks * 2 * 589824 + 294912 + 73728 + 9408 + 3
    assert sum(p.numel() for p in family.generator_ba.parameters()) == convolutions
    convolutions = 3072 + 64 + 131072 + 524288 + 2097152 + 8192 + 1
    assert sum(p.numel() for p in family.discriminator_b.parameters()) == convolutions


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch(layers: int, patch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With normalisation out of the way, the gradient of one logit covers patch x patch pixels."""
    network = "gan_train.families.cyclegan.networks.normalised"
    monkeypatch.setattr(network, lambda x: x)
    discriminator = Discriminator(1, 2, layers).double()
    image = normal(1, 1, 128, 128).requires_grad_(True)
    logits = discriminator(image)
    middle = logits.shape[-1] // 2
    (gradient,) = torch.autograd.grad(logits[0, middle, middle], image)
    seen = gradient[0, 0] != 0
    assert (int(seen.any(dim=0).sum()), int(seen.any(dim=1).sum())) == (patch, patch)


def test_weights_start_as_in_the_paper() -> None:
    torch.manual_seed(0)
    family = CycleGANConfig(width=32, discriminator_width=32).build(SHAPE_64, 1)
    for name, parameter in family.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        elif parameter.numel() > 5000:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.05)
            assert abs(float(parameter.detach().mean())) < 0.001


def test_every_weight_counts() -> None:
    """No parameter is left without a gradient, or shut off by a normalisation behind it."""
    family, batch = small(identity_weight=1), batch_of()
    found = family.loss_g(batch, draws(0, 4), Clock())
    sum(found.terms.values()).backward()
    sum(family.loss_d(batch | found.leaves, draws(0, 4), Clock()).terms.values()).backward()
    for name, parameter in family.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, name


def test_generators_that_add_to_their_input_start_as_the_identity() -> None:
    family, a = small(skip=True), batch_of()["image"]
    close(family.translate(a, "B"), a, rtol=0, atol=0)
    assert not torch.equal(small().translate(a, "B"), a)


# ---- losses ------------------------------------------------------------------------------------


def test_least_squares() -> None:
    real, fake = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, -2.0]])
    assert losses.least_squares_d(real, fake) == (0 + 4) / 2 + (0 + 4) / 2
    assert losses.least_squares_g(fake) == (1 + 9) / 2


@pytest.mark.parametrize(
    "changes", [{}, {"identity_weight": 3.0}, {"cycle_weight": 7.0, "paired_weight": 2.0}]
)
def test_loss_of_the_generators(changes: dict[str, float]) -> None:
    """Zhu et al. 2017, equations 2 and 3 and section 5.2, written out."""
    family, batch = small(**changes), batch_of()
    a, b = batch["image"], batch["other"]
    g, f = family.generator_ab, family.generator_ba  # the paper's G: X -> Y and F: Y -> X
    weight = {"cycle_weight": 10.0, "identity_weight": 0.0, "paired_weight": 0.0} | changes
    expected = {
        "G_ab": (family.discriminator_b(g(a)) - 1).pow(2).mean(),
        "G_ba": (family.discriminator_a(f(b)) - 1).pow(2).mean(),
        "cycle_a": weight["cycle_weight"] * (f(g(a)) - a).abs().mean(),
        "cycle_b": weight["cycle_weight"] * (g(f(b)) - b).abs().mean(),
        "identity_a": weight["identity_weight"] * (f(a) - a).abs().mean(),
        "identity_b": weight["identity_weight"] * (g(b) - b).abs().mean(),
        "paired_a": weight["paired_weight"] * (f(b) - a).abs().mean(),
        "paired_b": weight["paired_weight"] * (g(a) - b).abs().mean(),
    }
    found = family.loss_g(batch, draws(0, 4, "G"), Clock())
    close(found.terms, {name: value for name, value in expected.items() if value > 0})
    close(found.metrics["cycle_error/a"], (f(g(a)) - a).abs().mean().detach())
    close(found.leaves, {"fake_a": f(b).detach(), "fake_b": g(a).detach()})
    assert not any(fake.requires_grad for fake in found.leaves.values())
    assert batch.keys() == {"image", "other"}


def test_loss_of_the_discriminators() -> None:
    """Half of (D(real) - 1)^2 + D(shown)^2, where what is shown comes out of the pools."""
    family, batch = small(pool_size=2), batch_of()
    earlier = {"image": batch["image"], "fake_a": normal(4, 3, 16, 16, seed=5)}
    earlier |= {"other": batch["other"], "fake_b": normal(4, 3, 16, 16, seed=6)}
    family.loss_d(earlier, draws(0, 4), Clock())
    batch |= family.loss_g(batch, draws(4, 4, "G"), Clock()).leaves
    pools = {"a": family.pool_a.images.clone(), "b": family.pool_b.images.clone()}
    found = family.loss_d(batch, draws(4, 4), Clock())

    rng, expected, swapped = draws(4, 4), {}, 0
    for domain, real in (("a", batch["image"]), ("b", batch["other"])):
        discriminator = getattr(family, f"discriminator_{domain}")
        fake = batch[f"fake_{domain}"]
        shown = played(list(pools[domain]), 2, fake, range(4, 8), rng)
        swapped += int(not torch.equal(shown, fake))
        logit = discriminator(real), discriminator(shown)
        loss = ((logit[0] - 1).pow(2).mean() + logit[1].pow(2).mean()) / 2
        expected[f"D_{domain}"] = loss
        close(found.metrics[f"logit/real_{domain}"], logit[0].mean().detach())
        close(found.metrics[f"logit/fake_{domain}"], logit[1].mean().detach())
    assert swapped, "these draws exchange nothing: the test shows nothing"
    close(found.terms, expected)
    sum(found.terms.values()).backward()
    moved = {name.split(".")[0] for name, p in family.named_parameters() if p.grad is not None}
    assert moved == {"discriminator_a", "discriminator_b"}


# ---- the schedule ------------------------------------------------------------------------------


def test_the_rate_is_constant_then_falls_to_zero() -> None:
    family = small(kimg=3, decay_kimg=2, lr=0.004)
    (stage,) = family.stages()
    assert (stage.nimg, stage.resolution, stage.batch) == (3000, 16, 4)
    assert [(p.name, p.optimizer, p.every) for p in stage.phases] == [("G", "G", 1), ("D", "D", 1)]
    expected = {0: 0.004, 999: 0.004, 1000: 0.004, 2000: 0.002, 2750: 0.0005, 3000: 0, 3500: 0}
    for nimg, rate in expected.items():
        for name in "GD":
            assert settings_at(family, name, stage, Clock(0, nimg)).lr == pytest.approx(rate)
    constant = small(kimg=3, decay_kimg=0)
    assert settings_at(constant, "G", stage, Clock(0, 5000)).lr == 0.0002
    specs = CycleGANConfig().build(SHAPE_64, 1).optimizers()
    assert specs["G"].nets == ("generator_ab", "generator_ba")
    assert specs["D"].nets == ("discriminator_a", "discriminator_b")
    for spec in specs.values():
        assert spec.kind == "adam"
        assert spec.settings == OptimizerSettings(lr=0.0002, betas=(0.5, 0.999))


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"decay_kimg is 5; allowed: at most family\.kimg, 3"):
        CycleGANConfig(kimg=3, decay_kimg=5)
    with pytest.raises(UserError, match=r"discriminator_layers=3.* set it to 2 or less"):
        small(discriminator_layers=3)
    with pytest.raises(UserError, match=r"halvings=4.* set it to 2 or less"):
        small(halvings=4)
    family = small(halvings=2, discriminator_layers=2)  # the most for 16 pixels works
    batch = batch_of()
    found = family.loss_g(batch, draws(0, 4), Clock())
    shown = family.loss_d(batch | found.leaves, draws(0, 4), Clock())
    assert torch.isfinite(sum(found.terms.values()) + sum(shown.terms.values()))


# ---- pools -------------------------------------------------------------------------------------


def played(
    pool: list[Tensor], size: int, fakes: Tensor, positions: range, rng: BatchRandom
) -> Tensor:
    """The pool as a list, fake after fake: what is shown. `pool` is changed."""
    exchange, slot = (rng.uniform() < 0.5).tolist(), rng.integers(size).tolist()
    shown = []
    for fake, position, swap, place in zip(fakes, positions, exchange, slot, strict=True):
        if position < size:
            pool[position:] = [fake]
            shown.append(fake)
        elif swap:
            shown.append(pool[place])
            pool[place] = fake
        else:
            shown.append(fake)
    return torch.stack(shown)


def numbered(first: int, count: int) -> Tensor:
    """Images that tell their number: float64 [count, 1, 4, 4]."""
    return (torch.arange(first, first + count).double() + 1)[:, None, None, None].expand(
        -1, 1, 4, 4
    )


@pytest.mark.parametrize(("size", "batch"), [(5, 3), (4, 4), (3, 8), (50, 1), (1, 2)])
def test_a_pool_is_a_list_that_fakes_go_through_one_by_one(size: int, batch: int) -> None:
    pool, model = ImagePool(size, ImageShape(1, 4)).double(), []
    own = 0
    for step in range(40):
        start, fakes = step * batch, numbered(step * batch, batch)
        expected = played(model, size, fakes, range(start, start + batch), draws(start, batch))
        shown = pool.query(fakes, draws(start, batch))
        assert torch.equal(shown, expected), step
        assert torch.equal(pool.images[: len(model)], torch.stack(model)), step
        own += int((shown == fakes).all(dim=(1, 2, 3)).sum()) if start >= size else 0
    if batch * 40 > 4 * size:
        assert own / (40 * batch - size) == pytest.approx(0.5, abs=0.2)  # as often as not


def test_micro_batches_leave_the_same_pool() -> None:
    whole, cut = (ImagePool(5, ImageShape(1, 4)).double() for _ in range(2))
    for start in range(0, 48, 12):
        fakes = numbered(start, 12)
        expected = whole.query(fakes, draws(start, 12))
        parts = [cut.query(fakes[i : i + 4], draws(start + i, 4)) for i in (0, 4, 8)]
        assert torch.equal(torch.cat(parts), expected)
        assert torch.equal(whole.images, cut.images)


def test_a_pool_of_none_shows_what_it_is_given() -> None:
    pool, fakes = ImagePool(0, ImageShape(1, 4)).double(), numbered(0, 3)
    assert torch.equal(pool.query(fakes, draws(0, 3)), fakes)


def test_pools_are_kept_and_not_averaged() -> None:
    """They are in the state, whole on every worker, and no statistic of the batches."""
    family, batch = small(), batch_of()
    found = family.loss_g(batch, draws(0, 4, "G"), Clock())
    family.loss_d(batch | found.leaves, draws(0, 4), Clock())
    assert family.running_buffers() == []
    other = small()
    other.load_state_dict(family.state_dict())
    for step in (1, 2, 3):
        terms = []
        for one in (family, other):
            batch = batch_of(seed=step)
            batch |= one.loss_g(batch, draws(4 * step, 4, "G"), Clock()).leaves
            terms.append(one.loss_d(batch, draws(4 * step, 4), Clock()).terms)
        assert all(torch.equal(terms[0][name], terms[1][name]) for name in terms[0])


def _shares(folder: str) -> None:
    """Two workers' pool after some steps, and what each of them was shown."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    pool, shown = ImagePool(5, ImageShape(1, 4)).double(), []
    for start in range(0, 60, 6):
        positions = torch.arange(start + rank, start + 6, world)  # as the loader deals them
        fakes = numbered(0, 60)[positions]
        shown.append(pool.query(fakes, BatchRandom(3, "D", positions)))
    torch.save({"pool": pool.images, "shown": torch.stack(shown)}, Path(folder) / f"{rank}.pt")


@pytest.mark.slow
def test_the_pool_is_the_same_on_two_workers_as_on_one(tmp_path: Path) -> None:
    run_workers(2, tmp_path, _shares, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    pool = ImagePool(5, ImageShape(1, 4)).double()
    whole = [pool.query(numbered(start, 6), draws(start, 6)) for start in range(0, 60, 6)]
    assert torch.equal(first["pool"], pool.images) and torch.equal(second["pool"], pool.images)
    assert torch.equal(first["shown"], torch.stack(whole)[:, 0::2])
    assert torch.equal(second["shown"], torch.stack(whole)[:, 1::2])


# ---- use ---------------------------------------------------------------------------------------


def test_the_right_generator_translates() -> None:
    family, a = small(), batch_of()["image"]
    close(family.translate(a, "B"), family.generator_ab(a))
    close(family.translate(a, "A"), family.generator_ba(a))
    assert not torch.allclose(family.translate(a, "A"), family.translate(a, "B"))
    assert task_of(family) == "translate" and family.averaged == ("generator_ab", "generator_ba")


@pytest.mark.parametrize(("height", "width"), [(16, 24), (17, 30), (9, 8), (23, 19)])
def test_any_size_is_mirrored_and_cut(height: int, width: int) -> None:
    family, image = small(), normal(2, 3, height, width).tanh()
    whole = F.pad(image, (0, -width % 4, 0, -height % 4), mode="reflect")
    assert whole.shape[-1] % 4 == 0 == whole.shape[-2] % 4
    expected = family.generator_ab(whole)[..., :height, :width]
    close(family.translate(image, "B"), expected, rtol=0, atol=0)


@pytest.mark.parametrize("halvings", [0, 1, 2])
def test_the_smallest_picture(halvings: int) -> None:
    family = small(halvings=halvings)
    side = Generator(3, 4, halvings, 1, False).smallest
    assert family.translate(torch.zeros(1, 3, side, side).double(), "B").shape[-1] == side
    with pytest.raises(UserError, match=f"too small to be translated.* at least {side}"):
        family.translate(torch.zeros(1, 3, 32, side - 1).double(), "B")
