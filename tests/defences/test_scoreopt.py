"""ScoreOpt: N is O with frozen draws, and every trap of the released code."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gentk.attacks.victim import Tape
from gentk.defences.noise import Noise
from gentk.defences.one_shot import OneShot
from gentk.defences.scoreopt import ScoreOpt
from gentk.errors import RecipeError
from tests.defences.testbed import density, digits, noise

FROZEN: dict[str, Any] = {"resample_t": False, "resample_noise": False, "over_t2": True, "final": True}


def images(n: int) -> Tensor:
    return 2 * digits()[2][:n].double() - 1


def noisy_sample(z: Tensor, eps: Tensor, *, t: float, iters: int, lr: float) -> Tensor:
    """ScoreOpt-N as it is written: Adam of torch on the noisy u, loss |(u - D) / t - eps|^2, then D(u, t)."""
    u = (z + t * eps).requires_grad_()
    adam = torch.optim.Adam([u], lr)
    for _ in range(iters):
        adam.zero_grad()
        (((u - density()(u, t)) / t - eps) ** 2).sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
    return density()(u.detach(), t)


def test_n_is_o_with_frozen_draws() -> None:
    """The identity of the method notes, 3.2: to 1e-12 in float64, against torch's own Adam on the other variable."""
    z, draws = images(6), noise(6)
    theirs = noisy_sample(z, draws.normal("0.start", z), t=0.5, iters=8, lr=0.1)
    ours = ScoreOpt(density(), t0=0.5, iters=8, lr=0.1, **FROZEN)(z, draws)
    assert float((ours - theirs).abs().max()) < 1e-12
    for key in ("resample_t", "resample_noise", "final"):  # the control: each flag matters
        other = ScoreOpt(density(), t0=0.5, iters=8, lr=0.1, **FROZEN | {key: not FROZEN[key]})(z, draws)
        assert float((other - theirs).abs().max()) > 1e-3, key


def test_o_as_it_is_written() -> None:
    """The loop of the paper's code: a level and noise anew each step, Adam of torch, no final call."""
    z, draws = images(5), noise(5)
    at = z.clone().requires_grad_()
    adam = torch.optim.Adam([at], 0.1)
    for k in range(6):
        t = 0.5 + 0.1 * (2 * draws.uniform(f"{k}.level", z) - 1)
        assert 0.4 <= float(t.min()) < float(t.max()) < 0.6
        u = at + t.reshape(-1, 1, 1, 1) * draws.normal(f"{k}.start", z)
        adam.zero_grad()
        ((density()(u, t) - at) ** 2).sum().backward()  # type: ignore[no-untyped-call]
        adam.step()
    ours = ScoreOpt(density(), t0=0.5, iters=6, lr=0.1)(z, draws)
    assert float((ours - at.detach()).abs().max()) < 1e-12


def test_the_gradient_is_that_of_implicit_score_matching() -> None:
    """E |D(z + t eps) - z|^2 = d t^2 + t^4 E[|s|^2 + 2 div s], and its gradient is not SDS's -2 t^2 grad log p."""
    h, t, d = 0.4, 0.3, 1
    z = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None].requires_grad_()
    nodes = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    weights = torch.exp(-(nodes**2) / 2)
    weights = weights / weights.sum()
    u = z + t * nodes  # (9, Q)

    def denoise(u: Tensor) -> Tensor:  # two points at -1 and 1 with width h
        v = h**2 + t**2
        return (h**2 * u + t**2 * torch.tanh(u / v)) / v

    loss = (weights * (denoise(u) - z) ** 2).sum(1)
    v = h**2 + t**2
    s = (torch.tanh(u / v) - u) / v
    div = ((1 - torch.tanh(u / v) ** 2) / v - 1) / v
    other = d * t**2 + t**4 * (weights * (s**2 + 2 * div)).sum(1)
    torch.testing.assert_close(loss, other, rtol=0, atol=1e-10)
    (full,) = torch.autograd.grad(loss.sum(), z, retain_graph=True)
    stopped = 2 * (weights * (z - denoise(u))).sum(1, keepdim=True)
    torch.testing.assert_close(stopped, -2 * t**2 * (weights * s).sum(1, keepdim=True), rtol=0, atol=1e-10)
    assert float((full - stopped.detach()).abs().max()) > 0.02


@pytest.mark.parametrize("own", [{}, {"loss": "mse"}, {"loss": "sr"}, {"loss_grad": "stopgrad"}, FROZEN])
def test_the_batch_does_not_matter(own: dict[str, Any]) -> None:
    """Trap 1: alone, among 64 and permuted. A loss averaged over the batch moves image 0 by Adam's eps."""
    z, ids = images(64), torch.arange(64)
    purifier = ScoreOpt(density(), t0=0.5, iters=5, lr=0.1, **own)
    whole = purifier(z, Noise(Tape.of(ids, 1)))
    alone = purifier(z[:1], Noise(Tape.of(ids[:1], 1)))
    assert float((alone - whole[:1]).abs().max()) < 1e-10
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert float((purifier(z[order], Noise(Tape.of(ids[order], 1))) - whole[order]).abs().max()) < 1e-10
    single = purifier(z[:1].float(), Noise(Tape.of(ids[:1], 1)))
    assert float((single - whole[:1]).abs().max()) < 1e-3  # and in float32 it is the same purifier


def test_a_mean_over_the_batch_would_matter() -> None:
    """The control: the same loss divided by B C H W at the size of CIFAR's, where the gradient nears Adam's eps."""
    z, draws = images(64), noise(64)

    def scaled(n: int) -> Tensor:
        at, first = z[:n], Noise(draws.tape[:n])
        purifier = ScoreOpt(density(), t0=0.5, iters=5, lr=0.1, eps=1e-8 * n * 3072, **FROZEN)
        return purifier(at, first)[:1]  # eps over the factor is the gradient times the factor

    assert float((scaled(64) - scaled(1)).abs().max()) > 1e-4


def test_under_no_grad_and_inference_mode() -> None:
    """Trap 3: every evaluation loop switches gradients off, and the defence needs its own."""
    z, draws = images(3), noise(3)
    purifier = ScoreOpt(density(), t0=0.5, iters=3, lr=0.1, loss="sr", final=True)
    plain = purifier(z, draws)
    with torch.no_grad():
        assert torch.equal(purifier(z, draws), plain)
    with torch.inference_mode():
        assert torch.equal(purifier(2 * digits()[2][:3].double() - 1, noise(3)), plain)
    assert not plain.requires_grad


def test_the_callers_random_state_is_left_alone() -> None:
    """Trap 2: level and noise are the tape's; neither torch's nor Python's generator is asked."""
    import random

    z, draws = images(2), noise(2)
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    first = ScoreOpt(density(), t0=0.5, iters=3, lr=0.1)(z, draws)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    torch.manual_seed(4)
    assert torch.equal(ScoreOpt(density(), t0=0.5, iters=3, lr=0.1)(z, draws), first)


def test_nothing_done_is_nothing_changed() -> None:
    """Traps 10 and 11: no step or no rate is the identity; one step moves every pixel by lr, whatever the image."""
    z, draws = images(4), noise(4)
    idle = ScoreOpt(density(), t0=0.5, iters=0, lr=0.1)
    assert torch.equal(idle(z, draws), z)
    assert not idle.random
    assert idle.nfe == 0
    assert torch.equal(ScoreOpt(density(), t0=0.5, iters=5, lr=0.0)(z, draws), z)
    moved = (ScoreOpt(density(), t0=0.5, iters=1, lr=0.1)(z, draws) - z).abs()
    assert float(moved.mean()) == pytest.approx(0.1, rel=1e-3)
    far = (ScoreOpt(density(), t0=0.5, iters=20, lr=0.01)(z, draws) - z).abs()
    assert float(far.max()) < 20 * 0.01 * 1.5


def test_range() -> None:
    """Trap 10: the density sits in [-1, 1]; at a small level a digit is its own answer, in [0, 1] it is not."""
    z = images(20)
    right = (density()(z, 0.02) - z).abs().mean()
    wrong = (density()((z + 1) / 2, 0.02) - (z + 1) / 2).abs().mean()
    assert float(right) < 0.01
    assert float(wrong) > 1.2 * float(right)


def test_weight_zero_is_the_plain_loss() -> None:
    z, draws = images(4), noise(4)
    plain = ScoreOpt(density(), t0=0.5, iters=4, lr=0.1)(z, draws)
    for loss in ("mse", "sr"):
        zero = ScoreOpt(density(), t0=0.5, iters=4, lr=0.1, loss=loss, weight=0.0)  # type: ignore[arg-type]
        torch.testing.assert_close(zero(z, draws), plain, rtol=0, atol=1e-12)
        some = ScoreOpt(density(), t0=0.5, iters=4, lr=0.1, loss=loss, weight=1.0)  # type: ignore[arg-type]
        assert float((some(z, draws) - plain).abs().max()) > 1e-3
    near = ScoreOpt(density(), t0=0.5, iters=10, lr=0.1, loss="mse", weight=30.0)(z, draws)
    far = ScoreOpt(density(), t0=0.5, iters=10, lr=0.1)(z, draws)
    assert float((near - z).abs().mean()) < 0.7 * float((far - z).abs().mean())


def test_nfe_and_surrogates() -> None:
    calls: list[Tensor] = []

    def spy(z: Tensor, t: float | Tensor) -> Tensor:
        calls.append(z)
        return density()(z, t)

    z, draws = images(2), noise(2)
    for own, nfe in (({}, 5), ({"loss": "sr"}, 10), (FROZEN, 6), ({"loss_grad": "stopgrad"}, 5)):
        purifier = ScoreOpt(spy, t0=0.5, iters=5, lr=0.1, **own)
        calls.clear()
        purifier(z, draws)
        assert len(calls) == purifier.nfe == nfe
        once = purifier.surrogate(z, draws)
        torch.testing.assert_close(once, OneShot(density(), 0.5)(z, draws), rtol=0, atol=0)
    unrolled = ScoreOpt(density(), t0=0.5, iters=5, lr=0.1, surrogate_by="sgd", surrogate_lr=0.2)
    by_hand = ScoreOpt(density(), t0=0.5, iters=5, lr=0.2, optimiser="sgd")(z, draws)
    torch.testing.assert_close(unrolled.surrogate(z, draws), by_hand, rtol=0, atol=0)


@pytest.mark.parametrize("t0", [0.05, 0.1])
def test_a_level_of_zero_is_refused(t0: float) -> None:
    """Trap 9. A frozen level has no band to cross 0 with."""
    with pytest.raises(RecipeError, match="must be above 0"):
        ScoreOpt(density(), t0=t0, band=0.1)
    ScoreOpt(density(), t0=t0, band=0.1, resample_t=False)


def test_clean_accuracy_of_the_reference() -> None:
    """h = 0.27, t0 0.5, 5 steps: O 98.6 and N 97.2 per cent right, one call 95.4: within two points on 397 images."""
    from gentk.defences.purified import PurifiedClassifier
    from tests.defences.testbed import victim

    _, _, x, y = digits()
    for purifier, expected in (
        (ScoreOpt(density(), t0=0.5, iters=5, lr=0.1), 98.6),
        (ScoreOpt(density(), t0=0.5, iters=5, lr=0.1, **FROZEN), 97.2),
        (OneShot(density(), 0.5), 95.4),
    ):
        defended = PurifiedClassifier(victim(), 10, purifier)
        right = [defended.logits(x, defended.tape(torch.arange(397), 7, d)).argmax(1) == y for d in range(4)]
        assert abs(100 * float(torch.cat(right).float().mean()) - expected) < 2
