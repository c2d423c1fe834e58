"""Exact gradients of every purifier, in the memory of one step, and the ways in which they come out wrong silently."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gentk.defences.diffpure import DiffPure
from gentk.defences.one_shot import OneShot
from gentk.defences.purify_pp import Churn, PurifyPP
from gentk.defences.scoreopt import ScoreOpt
from gentk.defences.walk import walk, whole_graph
from gentk.errors import RunFailed
from tests.defences.testbed import density, digits, noise

FROZEN: dict[str, Any] = {"resample_t": False, "resample_noise": False, "over_t2": True, "final": True}
PURIFIERS = {
    "one-shot": OneShot(density(), 0.5),
    "ode": PurifyPP(density(), 0.5, 6, t_min=0.02),
    "heun": PurifyPP(density(), 0.5, 5, t_min=0.02, solver="heun", rounds=2),
    "sde": PurifyPP(density(), 0.5, 6, t_min=0.02, solver="exponential", langevin=1.0, corrector=True),
    "churn": PurifyPP(density(), 0.5, 6, t_min=0.02, solver="heun", churn=Churn(2.0)),
    "diffpure": DiffPure(density(), steps=12),
    "scoreopt-o": ScoreOpt(density(), t0=0.5, iters=4, lr=0.1),
    "scoreopt-n": ScoreOpt(density(), t0=0.5, iters=4, lr=0.1, **FROZEN),
    "scoreopt-mse": ScoreOpt(density(), t0=0.5, iters=3, lr=0.1, loss="mse", weight=0.3),
    "scoreopt-sr": ScoreOpt(density(), t0=0.5, iters=3, lr=0.1, loss="sr", weight=0.5),
    "scoreopt-stopgrad": ScoreOpt(density(), t0=0.5, iters=4, lr=0.1, loss_grad="stopgrad"),
    "scoreopt-sgd": ScoreOpt(density(), t0=0.5, iters=4, lr=0.05, optimiser="sgd"),
}


def images(n: int) -> Tensor:
    return 2 * digits()[2][:n].double() - 1


@pytest.mark.parametrize("name", PURIFIERS)
def test_directional_derivative(name: str) -> None:
    """<g, d> against a central difference, in float64 with the noise frozen.

    The quotient's error is O(h^2); h = 1e-6 leaves 1e-16 / h of rounding. Adam's sign-like steps have derivatives up to
    lr / eps, so the direction is followed at two images whose answers are added up with random weights.
    """
    purifier, z, draws = PURIFIERS[name], images(2), noise(2)
    gen = torch.Generator().manual_seed(5)
    weight, d = (torch.randn(z.shape, generator=gen, dtype=torch.float64) for _ in range(2))
    at = z.clone().requires_grad_()
    (g,) = torch.autograd.grad((weight * purifier(at, draws)).sum(), at)
    found, h = float((g * d).sum()), 1e-6
    with torch.no_grad():
        rise = float((weight * (purifier(z + h * d, draws) - purifier(z - h * d, draws))).sum()) / (2 * h)
    assert found == pytest.approx(rise, rel=2e-4, abs=1e-8)
    assert abs(found) > 1e-6


@pytest.mark.parametrize("name", PURIFIERS)
def test_the_walk_back_is_the_plain_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps in one graph, which fits here, gives the same gradient to rounding."""
    purifier, z, draws = PURIFIERS[name], images(2).requires_grad_(), noise(2)
    (ours,) = torch.autograd.grad(purifier(z, draws).pow(2).sum(), z)

    def plain(step: Any, steps: int, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for i in range(steps):
            state = step(i, state)
        return state

    for module in ("one_shot", "purify_pp", "diffpure", "scoreopt"):
        monkeypatch.setattr(f"gentk.defences.{module}.walk", plain)
    (whole,) = torch.autograd.grad(purifier(z, draws).pow(2).sum(), z)
    torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-12)
    monkeypatch.undo()
    with whole_graph():
        (kept,) = torch.autograd.grad(purifier(z, draws).pow(2).sum(), z)
    torch.testing.assert_close(kept, whole, rtol=0, atol=0)


def test_a_whole_graph_does_nothing_twice() -> None:
    """What it saves: each step runs once with a gradient, not twice, and only within it."""
    calls = []

    def step(i: int, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        calls.append(i)
        return (state[0] * 2,)

    for wanted, expected in ((True, [0, 1, 2]), (False, [0, 1, 2, 2, 1, 0])):
        z = torch.ones(2, requires_grad=True)
        calls.clear()
        with whole_graph(wanted):
            (out,) = walk(step, 3, (z,))
        out.sum().backward()
        assert (calls, z.grad.tolist()) == (expected, [8.0, 8.0])  # type: ignore[union-attr]
    with pytest.raises(ZeroDivisionError), whole_graph():
        raise ZeroDivisionError
    calls.clear()
    (out,) = walk(step, 3, (torch.ones(2, requires_grad=True),))
    out.sum().backward()
    assert len(calls) == 6


class Kept:
    """What a graph holds on to, in bytes, now and at most: its saved tensors live as long as these."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, x: Tensor) -> Any:
        kept = self

        class Held:
            def __init__(self) -> None:
                self.x, self.size = x, x.numel() * x.element_size()
                kept.now += self.size
                kept.most = max(kept.most, kept.now)

            def __del__(self) -> None:
                kept.now -= self.size

        return Held()


def _most(purifier: PurifyPP, z: Tensor) -> int:
    kept, at = Kept(), z.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda held: held.x):
        torch.autograd.grad(purifier(at, noise(len(z))).sum(), at)
    gc.collect()
    return kept.most


def test_memory_is_that_of_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the steps: ten times the states, 512 bytes an image, and one step's graph as before."""
    z = images(8)
    few, many = (_most(PurifyPP(density(), 0.5, n), z) for n in (4, 40))
    states = 36 * z.numel() * z.element_size()
    assert few < many <= few + 1.2 * states
    one = _most(PurifyPP(density(), 0.5, 1), z)

    def plain(step: Any, steps: int, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for i in range(steps):
            state = step(i, state)
        return state

    monkeypatch.setattr("gentk.defences.purify_pp.walk", plain)
    assert _most(PurifyPP(density(), 0.5, 40), z) > 20 * one > 10 * (many - 2 * states)  # the control


def test_a_step_that_is_not_its_own_second_time_is_found() -> None:
    """Noise from a generator of one's own, from Python's random or numpy, dropout: silent in torch's checkpoint."""
    gen, z = torch.Generator().manual_seed(0), torch.zeros(4, 3, requires_grad=True)

    def drawing(_: int, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (state[0] + torch.randn(4, 3, generator=gen),)

    (out,) = walk(drawing, 3, (z,))
    with pytest.raises(RunFailed, match="came out otherwise"):
        out.sum().backward()
    dropout = nn.Dropout(0.5)
    (out,) = walk(lambda _, s: (dropout(s[0]),), 2, (torch.ones(50, requires_grad=True),))
    with pytest.raises(RunFailed, match="came out otherwise") as told:
        out.sum().backward()
    assert "train mode" in told.value.hint


def test_torch_checkpoint_would_not_have_told() -> None:
    """The control of the test above: a user-owned generator is not replayed, and no error is raised."""
    from torch.utils.checkpoint import checkpoint

    gen, z = torch.Generator().manual_seed(0), torch.ones(4, 3, requires_grad=True)

    def drawing(x: Tensor) -> Tensor:
        return x * torch.randn(4, 3, generator=gen)

    out = checkpoint(drawing, z, use_reentrant=False)
    (g,) = torch.autograd.grad(out.sum(), z)
    assert float((g - out.detach()).abs().max()) > 0.1  # d out / dz is the noise itself, out / z


def test_gradients_reach_no_parameter() -> None:
    """A network whose weights ask for gradients gets none: they are taken with respect to the image only."""
    torch.manual_seed(0)
    net = nn.Conv2d(1, 1, 3, padding=1).double()

    def denoise(z: Tensor, t: float | Tensor) -> Tensor:
        return torch.tanh(net(z))

    for purifier in (PurifyPP(denoise, 0.5, 3), ScoreOpt(denoise, t0=0.5, iters=3, lr=0.1)):
        at = images(2).requires_grad_()
        torch.autograd.grad(purifier(at, noise(2)).sum(), at)
        purifier(images(2), noise(2))
        assert all(p.grad is None for p in net.parameters())
