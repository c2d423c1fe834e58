"""Adversarial training: its gradient is the paper's, at the inner maximiser, and the inner loop leaves no trace."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentk.attacks.ball import Ball
from gentk.attacks.training import Inner, madry, trades
from tests.attacks.differences import larger
from tests.attacks.victims import Linear, digits

GEN = torch.Generator().manual_seed(0)
X = 0.4 + 0.2 * torch.rand(32, 1, 4, 4, generator=GEN)
Y = torch.randint(2, (32,), generator=GEN)
EPS = 0.1


def gen() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def linear() -> Linear:
    weight = torch.randn(2, 16, generator=torch.Generator().manual_seed(2))
    return Linear(weight)


def gradient(loss: Tensor, net: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)])


def worst(net: Linear) -> Tensor:
    """The maximiser in closed form: against the sign of the margin's weights."""
    margin = (net.weight[0] - net.weight[1]).detach().sign().reshape(1, 1, 4, 4)
    return X - EPS * margin * torch.where(Y == 0, 1.0, -1.0).reshape(-1, 1, 1, 1)


def test_madry_is_the_gradient_of_the_maximum() -> None:
    """Danskin: the gradient of max_x' L(w, x'), here a closed form, equals that at the maximiser held constant."""
    net = linear()
    inner = Inner(Ball("linf", EPS), 10, EPS / 4)
    loss, _ = madry(net, X, Y, inner, gen())
    margin = (net.weight[0] - net.weight[1]).reshape(1, -1)
    sign = torch.where(Y == 0, 1.0, -1.0)
    # max over the ball of softplus(-m), m = sign (w.x + b) - eps |w|_1: differentiated as a whole, the maximum included
    m = sign * (X.flatten(1) @ margin.T)[:, 0] + sign * (net.bias[0] - net.bias[1]) - EPS * margin.abs().sum()
    maximum = F.softplus(-m).mean()
    torch.testing.assert_close(loss, maximum, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradient(loss, net), gradient(maximum, net), atol=1e-6, rtol=1e-5)
    # controls: clean images, the least harmful images, and half of the ball are other gradients
    for other in (X, 2 * X - worst(net), (X + worst(net)) / 2):
        wrong = gradient(F.cross_entropy(net(other), Y), net)
        assert not torch.allclose(wrong, gradient(maximum, net), atol=1e-6, rtol=1e-5)


def test_madry_does_not_differentiate_the_inner_steps() -> None:
    """The image is a constant: with a smooth step the gradient through it would be another one."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 2))
    inner = Inner(Ball("l2", 0.5), 3, 0.2, random_start=False)
    loss, _ = madry(net, X, Y, inner, gen())
    found = gradient(loss, net)

    moved = X.clone().requires_grad_(True)
    through = moved
    for _ in range(3):
        (g,) = torch.autograd.grad(F.cross_entropy(net(through), Y, reduction="sum"), through, create_graph=True)
        through = inner.ball.project(inner.ball.ascend(through, g, 0.2), X)
    torch.testing.assert_close(loss, F.cross_entropy(net(through), Y), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradient(F.cross_entropy(net(through.detach()), Y), net), found, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(gradient(F.cross_entropy(net(through), Y), net), found, atol=1e-6, rtol=1e-4)


def test_trades_is_its_formula_at_the_maximiser_of_the_divergence() -> None:
    """Two linear classes: KL(p(x) || p(x')) grows with the distance of the margins, so each corner is a local maximum.

    Value and gradient at the one that was climbed are then written out with p's instead of logarithms.
    """
    net, beta = linear(), 3.0
    inner = Inner(Ball("linf", EPS), 20, EPS / 4)
    loss, logits = trades(net, X, Y, inner, gen(), beta=beta)
    direction = (net.weight[0] - net.weight[1]).detach().sign().reshape(1, 1, 4, 4)
    corners = torch.stack([X + EPS * direction, X - EPS * direction])

    def kl(moved: Tensor) -> Tensor:
        p, q = net(X).softmax(1), net(moved).softmax(1)
        return (p * (p / q).log()).sum(1)

    nearest = (logits[None] - torch.stack([net(c) for c in corners])).abs().sum(2).argmin(0)
    chosen = corners[nearest, torch.arange(32)]
    expected = -net(X).softmax(1)[torch.arange(32), Y].log().mean() + beta * kl(chosen).mean()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    own = gradient(loss, net)
    torch.testing.assert_close(own, gradient(expected, net), atol=1e-5, rtol=1e-4)

    def half_detached() -> Tensor:  # control: the clean side held constant
        p, q = net(X).softmax(1).detach(), net(chosen).softmax(1)
        return F.cross_entropy(net(X), Y) + beta * (p * (p / q).log()).sum(1).mean()

    def reversed_kl() -> Tensor:  # control: KL(p(x') || p(x))
        p, q = net(chosen).softmax(1), net(X).softmax(1)
        return F.cross_entropy(net(X), Y) + beta * (p * (p / q).log()).sum(1).mean()

    for wrong in (half_detached(), reversed_kl(), F.cross_entropy(net(X), Y)):
        assert not torch.allclose(gradient(wrong, net), own, atol=1e-5, rtol=1e-4)


def test_trades_leaves_the_image_where_its_gradient_is_zero() -> None:
    """At x itself the KL is 0 with gradient 0: without the nudge nothing would ever move.

    With it every image of two linear classes goes to a corner: its margin moves by eps |w_1 - w_0|_1, up or down.
    """
    net = linear()
    _, logits = trades(net, X, Y, Inner(Ball("linf", EPS), 5, EPS / 2), gen(), beta=1.0)
    margins = [(each[:, 1] - each[:, 0]).detach() for each in (logits, net(X))]
    farthest = EPS * (net.weight[1] - net.weight[0]).detach().abs().sum()
    torch.testing.assert_close((margins[0] - margins[1]).abs(), farthest.expand(32), atol=1e-5, rtol=1e-5)


LOSSES: list[Callable[..., tuple[Tensor, Tensor]]] = [madry, lambda *a: trades(*a, beta=6.0)]


@pytest.mark.parametrize("loss", LOSSES)
def test_the_inner_loop_is_in_eval_mode_and_leaves_no_trace(loss: Callable[..., tuple[Tensor, Tensor]]) -> None:
    modes: list[tuple[bool, bool]] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            modes.append((self.training, torch.is_grad_enabled()))
            return x

    net = nn.Sequential(Watch(), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    net.train()
    net[3].eval()  # a module frozen by its owner stays so
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    value, _ = loss(net, X, Y, Inner(Ball("linf", EPS), 4, EPS / 2), gen())
    outer = 2 if loss is not madry else 1
    assert [m[0] for m in modes] == [False] * (len(modes) - outer) + [True] * outer
    assert net[1].training
    assert net[4].training
    assert not net[3].training
    assert int(net[1].num_batches_tracked) == outer
    assert all(bool((p.grad == 1).all()) for p in net.parameters())
    value.backward()
    assert all(bool((p.grad != 1).any()) for p in net.parameters() if p.numel() > 1)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_repeated_by_its_generator(loss: Callable[..., tuple[Tensor, Tensor]]) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    inner = Inner(Ball("linf", EPS), 2, EPS / 3)
    torch.manual_seed(0)
    first = loss(net, X, Y, inner, gen())[1]
    torch.manual_seed(1)
    assert torch.equal(loss(net, X, Y, inner, gen())[1], first)
    assert not torch.equal(loss(net, X, Y, inner, torch.Generator().manual_seed(5))[1], first)


def test_it_makes_a_network_robust() -> None:
    """250 steps on digits: more is left under the same attack than of the plainly trained one, on the same images."""
    x, y, test, labels = digits()
    left = {}
    for adversarial in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        adam, own = torch.optim.Adam(net.parameters(), 3e-3), gen()
        inner = Inner(Ball("linf", 0.15), 3, 0.08)
        for _ in range(250):
            rows = torch.randint(len(x), (100,), generator=own)
            adam.zero_grad()
            clean = F.cross_entropy(net(x[rows]), y[rows])
            (madry(net, x[rows], y[rows], inner, own)[0] if adversarial else clean).backward()
            adam.step()
        strong = Inner(Ball("linf", 0.15), 20, 0.02)
        _, logits = madry(net.eval(), test, labels, strong, gen())
        left[adversarial] = logits.argmax(1) == labels
    assert larger(left[True], left[False])
