"""PGD against victims whose best attack is known, its averages over noise against loops, and its traps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentk.attacks.ball import Ball, Norm
from gentk.attacks.pgd import Pgd, gradient, pgd, predictions
from gentk.attacks.suite import Plan, attack
from gentk.attacks.victim import Grad, Tape, Undefended
from gentk.errors import RecipeError, RunFailed
from tests.attacks.differences import larger
from tests.attacks.victims import Linear, Noisy, Rounding, digits, trained

GEN = torch.Generator().manual_seed(0)
IDS = torch.arange(397)


def linear(classes: int = 3) -> tuple[Undefended, Tensor, Tensor, Tensor]:
    weight = torch.randn(classes, 16, generator=GEN)
    x = 0.3 + 0.4 * torch.rand(50, 1, 4, 4, generator=GEN)
    return Undefended(Linear(weight), classes), x, torch.zeros(50).long(), weight


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("random_start", [True, False])
def test_the_best_attack_on_two_linear_classes_is_found(norm: Norm, random_start: bool) -> None:
    """Cross-entropy of two classes rises along w_1 - w_0 alone: best is the dual direction's point at radius eps."""
    victim, x, y, weight = linear(2)
    ball, along = Ball(norm, 0.1), (weight[1] - weight[0]).reshape(1, 1, 4, 4)
    best = x + 0.1 * (along.sign() if norm == "linf" else along / along.norm())
    found = pgd(victim, x, y, IDS[:50], Pgd(ball, 80, 0.025, random_start=random_start), seed=0)
    torch.testing.assert_close(found, best.expand_as(x), atol=1e-5, rtol=0)


def test_the_input_is_left_alone_and_eps_0_is_clean() -> None:
    victim, x, y, _ = linear()
    before = x.clone()
    found = pgd(victim, x, y, IDS[:50], Pgd(Ball("linf", 0.0), 5, 0.01), seed=0)
    assert torch.equal(found, before)
    pgd(victim, x, y, IDS[:50], Pgd(Ball("linf", 0.3), 5, 0.1), seed=0)
    assert torch.equal(x, before)


def shares(victim: Undefended, x: Tensor, y: Tensor, *, seed: int = 10_000, draws: int = 1) -> Tensor:
    """The share of draws that are right, image by image: (N,)."""
    ids = IDS[: len(x)]
    return (predictions(victim, x, ids, seed=seed, draws=draws) == y[:, None]).double().mean(1)


def accuracy(victim: Undefended, x: Tensor, y: Tensor) -> float:
    return float(shares(victim, x, y).mean())


def test_undefended_falls_and_one_step_does_less_than_many() -> None:
    _, _, x, y = digits()
    victim, ball = Undefended(trained(), 10), Ball("linf", 0.2)
    clean = accuracy(victim, x, y)
    many = pgd(victim, x, y, IDS, Pgd(ball, 30, 0.05), seed=0)
    one = attack("one-step", victim, x, y, IDS, Plan(ball, 30, 0.05)).x
    assert accuracy(victim, many, y) < 0.02  # what the method notes ask of the undefended digits
    assert larger(shares(victim, one, y), shares(victim, many, y))
    wrong_way = (2 * x - many).clamp(0, 1)  # negative control: down the loss instead of up
    assert accuracy(victim, wrong_way, y) >= clean > accuracy(victim, one, y)


# --- noise ------------------------------------------------------------------------------------------------------------


def test_copies_in_one_batch_equal_a_loop_over_the_copies() -> None:
    _, _, x, y = digits()
    x, y, victim = x[:20], y[:20], Noisy(trained(), 10, 0.2)
    together = gradient(victim, x, y, IDS[:20], grad="full", seed=3, first=40, eot=5)
    total = torch.zeros_like(x)
    for k in range(5):
        inner = x.clone().requires_grad_(True)
        loss = F.cross_entropy(victim.logits(inner, victim.tape(IDS[:20], 3, 40 + k)), y, reduction="sum")
        total += torch.autograd.grad(loss, inner)[0]
    torch.testing.assert_close(together, total / 5, atol=1e-6, rtol=1e-4)
    for chunk in (1, 7, 33, 100):
        parts = gradient(victim, x, y, IDS[:20], grad="full", seed=3, first=40, eot=5, chunk=chunk)
        torch.testing.assert_close(parts, together, atol=1e-6, rtol=1e-4)
    other = gradient(victim, x, y, IDS[:20], grad="full", seed=3, first=41, eot=5)
    assert not torch.allclose(other, together, atol=1e-6, rtol=1e-4)  # control: it sees which draws are taken


def test_the_average_tends_to_the_expected_gradient() -> None:
    """Logits (a, -a), a = w (x + s z): E[d/dx softplus(-2 a)] = -2 w E[sigmoid(-2 a)], an integral per image."""
    weight, s, k = 1.5, 0.7, 20_000
    victim = Noisy(Linear(torch.tensor([[weight], [-weight]])), 2, s)
    x = torch.tensor([0.1, 0.5, 0.9]).reshape(3, 1, 1, 1)
    found = gradient(victim, x, torch.zeros(3).long(), IDS[:3], grad="full", seed=0, first=0, eot=k, chunk=20_000)
    z = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / (2 * torch.pi) ** 0.5 * (z[1] - z[0])
    values = -2 * weight * torch.sigmoid(-2 * weight * (x.double().flatten()[:, None] + s * z))
    mean = (values * density).sum(1)
    error = ((values**2 * density).sum(1) - mean**2).sqrt() / k**0.5
    assert bool(((found.flatten().double() - mean).abs() < 4 * error).all())
    at_mean = -2 * weight * torch.sigmoid(-2 * weight * x.double().flatten())  # control: noise ignored
    assert bool(((at_mean - mean).abs() > 8 * error).any())


@pytest.mark.parametrize("name", ["pgd-eot", "square"])
def test_images_do_not_influence_each_other(name: str) -> None:
    """Trap 21: a permuted batch gives the permuted images, a part of it the same part."""
    _, _, x, y = digits()
    x, y, victim = x[:12], y[:12], Noisy(trained(), 10, 0.1)
    plan = Plan(Ball("linf", 0.1), 4, 0.03, eot=3, restarts=2, queries=30, chunk=10)
    whole = attack(name, victim, x, y, IDS[:12], plan).x
    order = torch.randperm(12, generator=GEN)[:7]
    part = attack(name, victim, x[order], y[order], IDS[order], plan).x
    torch.testing.assert_close(part, whole[order], atol=1e-5, rtol=0)
    renamed = attack(name, victim, x[order], y[order], IDS[:7], plan).x
    assert not torch.allclose(renamed, whole[order], atol=1e-5, rtol=0)  # control: the noise goes with the id


def test_known_noise_is_an_advantage_that_fresh_noise_takes_away() -> None:
    """Trap 8: judged by the seed that it was made with, an attack looks far better than it is."""
    _, _, x, y = digits()
    x, y, victim = x[:200], y[:200], Noisy(trained(), 10, 0.3)
    made = attack("frozen", victim, x, y, IDS[:200], Plan(Ball("linf", 0.1), 20, 0.025, seed=0))
    assert made.knowledge == "frozen"
    assert larger(shares(victim, made.x, y, seed=10_000, draws=10), shares(victim, made.x, y, seed=0))
    honest = attack("pgd-eot", victim, x, y, IDS[:200], Plan(Ball("linf", 0.1), 20, 0.025, eot=10, seed=0))
    seen, fresh = (shares(victim, honest.x, y, seed=seed, draws=10) for seed in (0, 10_000))
    assert not larger(fresh, seen)  # control: what averages over noise has fitted none


def test_averaging_over_noise_makes_the_attack_stronger() -> None:
    _, _, x, y = digits()
    x, y, victim = x[:200], y[:200], Noisy(trained(), 10, 0.3)
    found = {}
    for eot in (1, 20):
        made = attack("pgd-eot", victim, x, y, IDS[:200], Plan(Ball("linf", 0.1), 10, 0.025, eot=eot))
        found[eot] = shares(victim, made.x, y, draws=10)
    assert larger(found[1], found[20])


def test_a_victim_without_noise_is_asked_once() -> None:
    _, _, x, y = digits()
    asked: list[int] = []

    class Counting(Undefended):
        def logits(self, x: Tensor, tape: Tape, grad: Grad = "full") -> Tensor:
            asked.append(len(x))
            return super().logits(x, tape, grad)

    victim = Counting(trained(), 10)
    assert predictions(victim, x[:9], IDS[:9], seed=0, draws=20).shape == (9, 20)
    pgd(victim, x[:9], y[:9], IDS[:9], Pgd(Ball("linf", 0.1), 2, 0.1, eot=20), seed=0)
    assert asked == [9] * 3


@pytest.mark.parametrize("name", ["pgd-eot", "square", "frozen"])
def test_the_callers_randomness_and_the_networks_gradients_are_left_alone(name: str) -> None:
    _, _, x, y = digits()
    victim = Noisy(trained(), 10, 0.1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    attack(name, victim, x[:4], y[:4], IDS[:4], Plan(Ball("linf", 0.1), 2, 0.05, eot=2, restarts=2, queries=3))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None and not p.requires_grad for p in victim.net.parameters())


# --- knowledge --------------------------------------------------------------------------------------------------------


def test_masked_gradients_do_nothing_where_bpda_breaks_the_defence() -> None:
    _, _, x, y = digits()
    victim = Rounding(trained(), 10)
    plan = Plan(Ball("linf", 0.2), 20, 0.05, random_start=False)
    made = {name: attack(name, victim, x, y, IDS, plan).x for name in ("pgd", "bpda", "blind")}
    assert torch.equal(made["pgd"], x)  # rounding's gradient is zero: what is left then says nothing
    left = {name: shares(victim, moved, y) for name, moved in made.items()}
    assert larger(left["pgd"], left["bpda"])
    assert larger(left["pgd"], left["blind"])


def test_restarts_help_and_are_chosen_on_draws_of_the_attack() -> None:
    _, _, x, y = digits()
    victim, ball = Undefended(trained(0.15), 10), Ball("linf", 0.2)
    one = pgd(victim, x, y, IDS, Pgd(ball, 5, 0.08), seed=0)
    five = pgd(victim, x, y, IDS, Pgd(ball, 5, 0.08, restarts=5), seed=0)

    def loss(moved: Tensor) -> Tensor:
        return F.cross_entropy(victim.net(moved), y, reduction="none")

    right_one, right_five = (victim.net(moved).argmax(1) == y for moved in (one, five))
    assert bool((right_five <= right_one).all())  # the first start of the five is the one
    assert int(right_five.sum()) < int(right_one.sum())
    assert float(loss(five).mean()) > float(loss(one).mean())


# --- bad input --------------------------------------------------------------------------------------------------------


def test_labels_beyond_the_classes_are_refused() -> None:
    victim, x, y, _ = linear(3)
    with pytest.raises(RecipeError, match="labels from 0 to 7, the classifier has 3 classes"):
        pgd(victim, x, torch.where(IDS[:50] == 3, 7, y), IDS[:50], Pgd(Ball("linf", 0.1), 1, 0.1), seed=0)


def test_images_out_of_range_are_refused() -> None:
    victim, x, y, _ = linear()
    with pytest.raises(RecipeError, match="values from"):
        pgd(victim, 2 * x - 1, y, IDS[:50], Pgd(Ball("linf", 0.1), 1, 0.1), seed=0)


class Hungry(nn.Module):
    def __init__(self, message: str, most: int) -> None:
        super().__init__()
        self.message, self.most = message, most
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise RuntimeError(self.message)
        return x.flatten(1)[:, :3]


def test_memory_is_named_with_a_chunk_that_is_smaller() -> None:
    _, x, y, _ = linear()
    full = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    victim = Undefended(Hungry(full, 20), 3)
    with pytest.raises(RunFailed, match="a pass of 50 rows") as e:
        pgd(victim, x, y, IDS[:50], Pgd(Ball("linf", 0.1), 1, 0.1), seed=0)
    assert "attack.chunk=25" in e.value.hint
    pgd(victim, x, y, IDS[:50], Pgd(Ball("linf", 0.1), 1, 0.1, chunk=20), seed=0)
    with pytest.raises(RuntimeError, match="shapes"):  # a bug keeps its traceback
        pgd(Undefended(Hungry("shapes", 20), 3), x, y, IDS[:50], Pgd(Ball("linf", 0.1), 1, 0.1), seed=0)


def test_a_gradient_that_is_not_finite_is_a_failure() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.flatten(1)[:, :3] * 0).sqrt()

    _, x, y, _ = linear()
    with pytest.raises(RunFailed, match="not finite"):
        pgd(Undefended(Root().eval(), 3), x, y, IDS[:50], Pgd(Ball("linf", 0.1), 1, 0.1), seed=0)
