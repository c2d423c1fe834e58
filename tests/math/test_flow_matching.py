"""Flow matching's loss, its minimiser, and the coupling of data and noise."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from gentk.losses import matching
from gentk.losses.coupling import paired
from gentk.processes.denoiser import Denoiser
from gentk.processes.process import Process, from_x0, ratio
from gentk.processes.schedules import RectifiedFlow
from tests.math.conftest import Mixture


class Velocity(nn.Module):
    """A raw network: its output is what `predicts` says."""

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        return x.sin() + c_noise[:, None] + (0 if cond is None else cond[:, None])


def draw(gen: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=gen, dtype=torch.float64)


def test_the_loss_is_the_velocity_s_error(gen: torch.Generator) -> None:
    """mean|net - (x1 - x0)|^2 with the network's raw output, on the path and with the labels that it is given."""
    x0, x1 = draw(gen, 2, 5, 3)
    t, label, sd = torch.tensor([1e-3, 0.2, 0.5, 0.9, 1.0]).double(), torch.arange(5), 0.7
    x = (1 - t[:, None]) * x0 + t[:, None] * x1
    scale = ((1 - t) ** 2 * sd**2 + t**2).sqrt()[:, None]
    noise = (t / (1 - t)).clamp(1e-6, 1e4).log() / 4
    want = (Velocity()(x / scale, noise, label) - (x1 - x0)).square().mean(1)
    flow = RectifiedFlow()
    got = matching.flow(Denoiser(Velocity(), flow, "flow", sd), flow, x0, t, x1, label, sd)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    backwards = Denoiser(Velocity(), flow, "reverse-flow", sd)  # the velocity of time run the other way
    other = matching.flow(backwards, flow, x0, t, x1, label, sd)
    assert ((other - want).abs() > 0.05 * want).all()


def test_every_process_has_that_velocity(process: Process, gen: torch.Generator) -> None:
    """The error of (x - D) / t on the straight path, for a denoiser of any process at the same noise level."""
    x0, eps = draw(gen, 2, 4, 3)
    s = torch.tensor([0.01, 0.3, 2.0, 40.0]).double()
    t, time = process.t_of(s), (s / (1 + s))[:, None]
    x = (1 - time) * x0 + time * eps
    denoiser = Denoiser(Velocity(), process, "edm", 0.7)
    alpha = process.alpha(t)[:, None]
    velocity = (x - denoiser(alpha * (x0 + s[:, None] * eps), t)) / time
    want = (velocity - (eps - x0)).square().mean(1)
    torch.testing.assert_close(matching.flow(denoiser, process, x0, t, eps, None, 0.7), want, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("level", [0.05, 0.8, 20.0])
def test_the_minimiser_is_the_exact_velocity(
    process: Process, mixture: Mixture, gen: torch.Generator, level: float
) -> None:
    """The loss's gradient along any direction of the velocity vanishes at E[x1 - x0 | x_t] of a mixture: z below 4.

    And the exact velocity is what the process's own kind says it is: on the straight path from x0's denoiser.
    """
    n = 40_000
    x0, eps = mixture.sample(n, gen), draw(gen, n, 2)
    t = process.t_of(torch.tensor(level).double())
    time = level / (1 + level)

    class Tilted(Denoiser):
        """The straight path's velocity: `tilt` times the exact one, pushed along the field cos(x) + sin(x)."""

        def __init__(self, tilt: float) -> None:
            super().__init__(nn.Identity(), process, "x0", 0.7)
            self.tilt, self.push = tilt, torch.zeros(n, 2, dtype=torch.float64, requires_grad=True)

        def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            straight = x / (process.alpha(t) + process.sigma(t))
            velocity = (straight - mixture.denoise(process, x, t)) / time
            return straight - time * (self.tilt * velocity + self.push * (straight.cos() + straight.sin()))

    def z(tilt: float) -> float:
        net = Tilted(tilt)
        each = torch.autograd.grad(matching.flow(net, process, x0, t, eps, None, 0.7).sum(), net.push)[0]
        return float((each.mean(0) / each.std(0) * n**0.5).abs().max())

    assert z(1.0) < 4
    assert z(0.8) > 8
    assert z(-1.0) > 20, "the sign of the velocity"


def test_a_gaussian_s_velocity_in_closed_form(gen: torch.Generator) -> None:
    """N(m, v): u = (t - (1 - t) v) / A (x - (1 - t) m) - m, A = (1 - t)^2 v + t^2, and the loss there is its variance.

    E|x1 - x0 - u|^2 = v / A per coordinate (the variance of x1 - x0 given x_t): 4 standard errors of 40 000 draws.
    """
    m, v, n, flow = 0.4, 0.49, 40_000, RectifiedFlow()
    x0, x1 = m + v**0.5 * draw(gen, n, 1), draw(gen, n, 1)

    class Exact(nn.Module):
        sign = 1.0

        def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
            s = (4 * c_noise)[:, None].exp()
            t = s / (1 + s)
            a = (1 - t) ** 2 * v + t**2
            x = x * ((1 - t) ** 2 * 0.49 + t**2).sqrt()  # sigma_data 0.7
            return self.sign * ((t - (1 - t) * v) / a * (x - (1 - t) * m) - m)

    for t in (0.1, 0.5, 0.9):
        exact = Denoiser(Exact(), flow, "flow", 0.7)
        time = torch.tensor(t, dtype=torch.float64)
        losses = matching.flow(exact, flow, x0, time, x1, None, 0.7)
        want = v / ((1 - t) ** 2 * v + t**2)
        assert abs(float(losses.mean()) - want) < 4 * float(losses.std()) / n**0.5
        x = (1 - t) * x0 + t * x1
        clean = exact(x, time)
        torch.testing.assert_close(from_x0("flow", flow, x, time, clean), (x - clean) / t, rtol=1e-9, atol=1e-9)
        exact.net.sign = -1.0  # type: ignore[assignment]
        wrong = matching.flow(exact, flow, x0, time, x1, None, 0.7)
        assert float(wrong.mean()) - want > 20 * float(wrong.std()) / n**0.5
        assert float(ratio(flow, time)) == pytest.approx(t / (1 - t))


# --- coupling ---------------------------------------------------------------------------------------------------------


def cost(x0: Tensor, x1: Tensor) -> float:
    return float((x0 - x1).flatten(1).square().sum())


def rows(x: Tensor) -> list[tuple[float, ...]]:
    return sorted(tuple(row.flatten().tolist()) for row in x)


@pytest.mark.parametrize("shape", [(6, 2), (7, 1, 2, 2)])
def test_the_coupling_is_the_best_of_all_permutations(shape: tuple[int, ...], gen: torch.Generator) -> None:
    for _ in range(3):
        x0, x1 = draw(gen, 2, *shape).float()
        best = min(cost(x0, x1[list(p)]) for p in itertools.permutations(range(shape[0])))
        assert cost(x0, paired("ot", x0, x1)) == pytest.approx(best, rel=1e-6)
        assert cost(x0, x1) > best * 1.01, "the control: as they come"
        assert torch.equal(paired("independent", x0, x1), x1)


@pytest.mark.parametrize("name", ["ot", "ot-per-class"])
def test_the_marginals_stay(name: str, gen: torch.Generator) -> None:
    """Noise in, the same noise out; the data are not touched, and so neither are their labels."""
    x0, x1 = draw(gen, 2, 50, 2)
    before = x0.clone()
    labels = torch.randint(3, (50,), generator=gen)
    mine = paired(name, x0, x1, labels)  # type: ignore[arg-type]
    assert rows(mine) == rows(x1)
    assert not torch.equal(mine, x1)
    assert torch.equal(x0, before)


def test_per_class_is_the_best_within_the_classes(gen: torch.Generator) -> None:
    x0, x1 = draw(gen, 2, 8, 2)
    x0[::2] += 3.0  # the classes lie apart, so that the best of all would cross them
    labels = torch.arange(8) % 2
    mine = paired("ot-per-class", x0, x1, labels)
    for k in (0, 1):
        own = labels == k
        assert rows(mine[own]) == rows(x1[own])
        best = min(cost(x0[own], x1[own][list(p)]) for p in itertools.permutations(range(4)))
        assert cost(x0[own], mine[own]) == pytest.approx(best, rel=1e-9)
    assert rows(paired("ot", x0, x1, labels)[::2]) != rows(x1[::2]), "the control: without classes it crosses them"
    torch.testing.assert_close(paired("ot-per-class", x0, x1), paired("ot", x0, x1), rtol=0, atol=0)


def test_what_each_coupling_does_to_a_class_s_noise(gen: torch.Generator) -> None:
    """Two classes at -2 and 2 on a line, 64 batches of 64: the mean noise of the right one, in standard errors.

    `ot` sends it the right half (mean sqrt(2 / pi) = 0.8); per class and at random it stays standard normal.
    """
    means = {}
    for name in ("independent", "ot", "ot-per-class"):
        found = []
        for _ in range(64):
            labels = torch.randint(2, (64,), generator=gen)
            x0 = (4.0 * labels - 2.0)[:, None].double() + 0.1 * draw(gen, 64, 1)
            found.append(paired(name, x0, draw(gen, 64, 1), labels)[labels == 1])  # type: ignore[arg-type]
        means[name] = float(torch.cat(found).mean())
    error = (64 * 32) ** -0.5
    assert abs(means["independent"]) < 4 * error
    assert abs(means["ot-per-class"]) < 4 * error
    assert means["ot"] == pytest.approx(0.798, abs=0.05)
