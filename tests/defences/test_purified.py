"""The classifier behind a purifier: four gradients, rows of their own, chunks, votes, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentk.attacks.victim import Tape, Victim
from gentk.defences.noise import Noise
from gentk.defences.none import Nothing
from gentk.defences.one_shot import OneShot
from gentk.defences.purified import PurifiedClassifier, fitting
from gentk.defences.purify_pp import PurifyPP
from gentk.defences.scoreopt import ScoreOpt
from gentk.errors import RecipeError
from tests.defences.testbed import density, digits, victim

SDE = PurifyPP(density(), 0.5, 5, t_min=0.02, solver="exponential", langevin=1.0)
IDS = torch.arange(12)


def images(n: int = 12) -> Tensor:
    return digits()[2][:n]


def defended(purifier: Any = SDE, **own: Any) -> PurifiedClassifier:
    return PurifiedClassifier(victim(), 10, purifier, **own)


def gradient(of: PurifiedClassifier, x: Tensor, tape: Tape, grad: Any) -> Tensor:
    at = x.clone().requires_grad_()
    loss = F.cross_entropy(of.logits(at, tape, grad), digits()[3][: len(x)], reduction="sum")
    (g,) = torch.autograd.grad(loss, at)
    return g


def test_it_is_a_victim() -> None:
    it: Victim = defended()
    assert it.random
    assert it.classes == 10
    assert not defended(Nothing()).random
    assert not defended(ScoreOpt(density(), iters=0)).random
    assert "surrogate" in it.modes
    assert "surrogate" not in defended(OneShot(density(), 0.5)).modes


def test_without_a_step_it_is_the_classifier() -> None:
    """Trap 1 of Purify++: the way to [-1, 1] and back loses nothing."""
    x = images()
    for purifier in (Nothing(), ScoreOpt(density(), iters=0)):
        it = defended(purifier)
        assert torch.equal(it.logits(x, it.tape(IDS, 0)), victim()(x))
        assert torch.equal(it.purify(x, it.tape(IDS, 0)), x)

    class Kept(PurifyPP):
        def __call__(self, z: Tensor, noise: Noise) -> Tensor:
            return z

    it = defended(Kept(density(), 0.5, 1))
    assert float((it.purify(x, it.tape(IDS, 0)) - x).abs().max()) < 1e-6


def test_range_of_the_denoiser() -> None:
    """The density is asked in [-1, 1]: in [0, 1] half of a digit's accuracy is gone."""
    it = defended(OneShot(density(), 0.5))
    seen: list[Tensor] = []
    spy = OneShot(lambda z, t: (seen.append(z), density()(z, t))[1], 0.0)  # type: ignore[func-returns-value]
    x = images()
    defended(spy).logits(x, it.tape(IDS, 0))
    torch.testing.assert_close(seen[0], 2 * x - 1, rtol=0, atol=0)


def test_bpda_is_the_gradient_at_the_purified_image() -> None:
    x, it = images(), defended()
    tape = it.tape(IDS, 0)
    shown = it.purify(x, tape).requires_grad_()
    (at_it,) = torch.autograd.grad(F.cross_entropy(victim()(shown), digits()[3][:12], reduction="sum"), shown)
    torch.testing.assert_close(gradient(it, x, tape, "bpda"), at_it, rtol=1e-5, atol=1e-7)
    assert torch.equal(it.logits(x, tape, "bpda"), it.logits(x, tape, "full"))
    assert float((gradient(it, x, tape, "full") - at_it).abs().max()) > 1e-3  # another gradient, the control


def test_blind_knows_the_classifier_only_and_surrogate_the_surrogate() -> None:
    x, it = images(), defended()
    tape = it.tape(IDS, 0)
    assert torch.equal(it.logits(x, tape, "blind"), victim()(x))
    assert torch.equal(gradient(it, x, tape, "blind"), gradient(defended(Nothing()), x, tape, "full"))
    one = defended(OneShot(density(), 0.5))
    torch.testing.assert_close(it.logits(x, tape, "surrogate"), one.logits(x, tape, "full"), rtol=0, atol=1e-5)
    same = gradient(it, x, tape, "surrogate"), gradient(one, x, tape, "full")
    torch.testing.assert_close(*same, rtol=1e-4, atol=1e-5)


def test_the_whole_pipeline_by_finite_differences() -> None:
    """Trap 20: classifier, clamp and both changes of range included, in float64 below the attack's float32."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)).double().eval()
    it = PurifiedClassifier(net, 10, SDE)
    x, tape = images(3).double(), Tape.of(IDS[:3], 0)
    d = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    at = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(it._part(at, tape, "full").pow(2).sum(), at)
    h = 1e-6
    rise = (it._part(x + h * d, tape, "full").pow(2) - it._part(x - h * d, tape, "full").pow(2)).sum() / (2 * h)
    assert float((g * d).sum()) == pytest.approx(float(rise.detach()), rel=1e-5)


def test_copies_in_one_batch_are_a_loop_over_them() -> None:
    x, it = images(6), defended()
    ids, k = IDS[:6], 5
    tapes = [it.tape(ids, 3, draw) for draw in range(k)]
    batched = it.logits(x.repeat(k, 1, 1, 1), Tape.cat(tapes)).reshape(k, 6, 10)
    looped = torch.stack([it.logits(x, tape) for tape in tapes])
    torch.testing.assert_close(batched, looped, rtol=1e-5, atol=5e-5)
    assert float((looped[0] - looped[1]).abs().max()) > 0.01


def test_two_workers_are_one() -> None:
    """Trap 12 of Purify++: workers that share the images share no noise, and together they are the one that had all."""
    x, whole = images(), defended()
    one, other = defended(), defended()
    halves = [of.logits(x[rows], of.tape(IDS[rows], 3)) for of, rows in ((one, slice(6)), (other, slice(6, 12)))]
    torch.testing.assert_close(torch.cat(halves), whole.logits(x, whole.tape(IDS, 3)), rtol=1e-5, atol=5e-5)
    noises = [Noise(whole.tape(rows, 3)).normal("0.start", x[:6]) for rows in IDS.split(6)]
    assert len(torch.unique(torch.cat(noises).flatten(1), dim=0)) == 12  # a generator per worker, seeded alike: 6


@pytest.mark.parametrize("grad", ["full", "bpda", "surrogate", "blind"])
def test_chunks_and_order_do_not_matter(grad: Any) -> None:
    x, it = images(), defended()
    tape = it.tape(IDS, 0)
    whole, g = it.logits(x, tape, grad).detach(), gradient(it, x, tape, grad)
    small = defended(chunk=5)
    torch.testing.assert_close(small.logits(x, tape, grad).detach(), whole, rtol=1e-5, atol=5e-5)
    torch.testing.assert_close(gradient(small, x, tape, grad), g, rtol=1e-3, atol=1e-5)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(it.logits(x[order], tape[order], grad).detach(), whole[order], rtol=1e-5, atol=5e-5)


def test_votes_are_a_mean_over_purifications_of_their_own() -> None:
    x, tape = images(), Tape.of(IDS, 0)
    one, three = defended().logits(x, tape), defended(votes=3).logits(x, tape)
    by_hand = []
    for vote in range(3):
        shown = (SDE(2 * x - 1, Noise(tape, f"{vote}/")) + 1) / 2
        by_hand.append(victim()(shown.clamp(0, 1)))
    torch.testing.assert_close(three, torch.stack(by_hand).mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(one, by_hand[0], rtol=0, atol=1e-6)
    assert float((by_hand[0] - by_hand[1]).abs().max()) > 0.01
    assert defended(votes=3).nfe == 15


def test_straight_through_lets_the_gradient_pass_the_clamp() -> None:
    x, tape = images(), Tape.of(IDS, 0)
    hard, through = defended(), defended(clamp="straight-through")
    assert torch.equal(hard.logits(x, tape), through.logits(x, tape).detach()) or torch.allclose(
        hard.logits(x, tape), through.logits(x, tape), atol=1e-5
    )
    assert float((gradient(hard, x, tape, "full") - gradient(through, x, tape, "full")).abs().max()) > 1e-4


def test_nothing_of_the_caller_changes() -> None:
    """Random state, gradients of parameters, train mode: as before, whatever a library does to the wrapper."""
    it, x = defended(), images()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    gradient(it, x, it.tape(IDS, 0), "full")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in it.parameters())
    it.train()
    assert not any(module.training for module in it.modules())


def test_what_it_refuses() -> None:
    with pytest.raises(RecipeError, match="train mode"):
        PurifiedClassifier(nn.Sequential(nn.Linear(2, 2)).train(), 2, Nothing())
    it = defended()
    for wrong, said in ((2 * images() - 1, "values from -1"), (images().double(), "float64")):
        with pytest.raises(RecipeError, match=said):
            it.logits(wrong, it.tape(IDS, 0))
        with pytest.raises(RecipeError, match=said):
            it.purify(wrong, it.tape(IDS, 0))
    with pytest.raises(RecipeError, match="tells 10 classes apart, `mnist` has 3"):
        fitting(10, 3, "net", "mnist")
