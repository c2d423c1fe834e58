"""What a sampler's run doubts of itself (S5, S6, S10, S13), and the lead that its score may follow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gentk.engine.method import Batch
from gentk.losses import implicit
from gentk.metrics import sampled
from gentk.nets.implicit import Score
from gentk.recipe.networks import Plain
from tests.tasks.test_implicit import build, fit
from tests.tasks.toys import randomise

F64 = torch.float64


class Narrow(nn.Module):
    """net(z) = (k - 1) z in the first coordinate: y has deviation k there, 1 in the others."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = k

    def forward(self, z: Tensor) -> Tensor:
        out = torch.zeros_like(z)
        out[:, 0] = (self.k - 1) * z[:, 0]
        return out


@pytest.mark.parametrize(
    ("sigma", "width", "said"),
    [(0.2, 1.0, ""), (0.2, 0.4, "too narrow"), (0.01, 1.0, "all noise"), (0.2, 0.0, "too narrow")],
)
def test_s5_s10_noise_that_does_not_fit_the_draws_is_said(
    sigma: float, width: float, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """0.05 to 0.3 of the narrowest direction pass; a lost dimension is narrower than any noise."""
    method = build(steps=10_000, method_={"sigma": 0.5, "sigma_end": sigma})
    method.sampler.net = Narrow(width)  # type: ignore[assignment]
    figures = method._doubts(method.sampler)
    # a deviation of 2,000 draws is within 5 of its standard errors, 1 / sqrt(4000)
    if width:
        assert figures["sigma_over_width"] == pytest.approx(sigma / min(1, width), rel=5 / 4000**0.5 + 1e-3)
    else:
        assert figures["sigma_over_width"] > 1e6
    err = capsys.readouterr().err
    assert (said in err) if said else not err
    method.config = method.config.model_copy(update={"lead": True})
    method._doubts(method.sampler)
    assert bool(capsys.readouterr().err) == (said == "too narrow")


def test_s10_without_a_latent_for_each_dimension_there_is_no_score() -> None:
    """The network's own latents fill all D dimensions; of D - 1 the draws lie in a plane.

    Then score matching finds -1 / sigma^2 across it, whatever sigma: the score, its limit, does not exist.
    """
    method = build("logistic:synthetic")
    d = method.density.dim
    randomise(method.sampler, 3)
    z = torch.randn(4000, d, generator=torch.Generator().manual_seed(0))
    lost = z.clone()
    lost[:, -1] = 0
    with torch.no_grad():
        whole = method.sampler.coordinates(z).double()
        bare = lost.double()  # the residual sampler z + net(z) with a net of nought
    least = float(torch.linalg.eigvalsh(whole.T.cov())[0])
    assert least > 0.01
    assert float(torch.linalg.eigvalsh(bare.T.cov())[0]) == 0.0
    for sigma in (0.1, 0.01):
        eps = torch.randn(bare.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
        slopes = []
        for draws in (z.double(), bare):
            at = draws + sigma * eps
            slopes.append(float((at[:, -1] * -eps[:, -1] / sigma).sum() / at[:, -1].square().sum()))
        # by 4,000 draws: -1 / (1 + sigma^2) has the error 1 / (sigma sqrt(4000)), the other is exact
        assert slopes[0] == pytest.approx(-1 / (1 + sigma**2), abs=5 / sigma / 4000**0.5)
        assert slopes[1] == pytest.approx(-1 / sigma**2, rel=1e-9)


def test_s6_a_lost_mode_pulls_nothing_and_the_bridge_does() -> None:
    """Two Gaussians at +-4, the sampler N((4, 0), I): the KL force is nought though KL is log 2; masses tell.

    By the bridge of an early step the same sampler is pulled back by (1 - lam) of its distance from the middle.
    """
    method = build("mog2", steps=100, method_={"scale": 1.0})
    z, w = np.polynomial.hermite_e.hermegauss(40)
    first, second = torch.meshgrid(torch.tensor(z), torch.tensor(z), indexing="ij")
    weights = torch.outer(torch.tensor(w), torch.tensor(w)).flatten() / (2 * math.pi)
    aim = torch.tensor([4.0, 0.0], dtype=F64)
    y = torch.stack([first.flatten(), second.flatten()], 1) + aim

    def own(at: Tensor) -> Tensor:
        return aim - at

    def pull(step: int) -> Tensor:
        return (weights[:, None] * implicit.kl(own, method.target(step, torch.Generator()), y)).sum(0)

    log_p = -(y - aim).square().sum(1) / 2 - math.log(2 * math.pi)
    divergence = float((weights * (log_p - method.density.log_prob(y))).sum())
    assert divergence == pytest.approx(math.log(2), abs=1e-3)
    # E[8 sigmoid(-8 y1)] over N(4, 1), the pull of the other mode, is below 8 E[exp(-8 y1); y1 > 0] + 8 P(y1 < 0)
    bound = 8 * math.exp(-8) / math.sqrt(2 * math.pi) / 4 + 8 * 3.2e-5 + 1e-6
    assert float(pull(99).norm()) < bound < 1e-3
    lam = method.lam(2)
    early = pull(2)  # positive: descending it moves the mean towards the middle
    assert float(early[0]) == pytest.approx((1 - lam) * 4, abs=bound)
    gen = torch.Generator().manual_seed(0)
    assert method.density.exact is not None
    exact = method.density.exact(4000, gen)
    draws = torch.randn(4000, 2, generator=gen) + aim.float()
    found = sampled.masses(draws, exact, method.density.centres)
    assert found.error > 10 * found.null
    again = sampled.masses(method.density.exact(4000, gen), exact, method.density.centres)
    assert again.error < 2 * again.null


def test_s13_a_share_of_cut_forces_above_a_fifth_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counted after the bridge; `clip` far above every force cuts nothing and says nothing."""
    for clip, warns in ((1e-3, True), (1e6, False)):
        method = build("rosenbrock", steps=6, method_={"scale": 2.0, "clip": clip, "lag": None, "anneal": 0.5})
        fit(method, tmp_path / str(clip))
        assert float(method.score.cut[1]) == sum(method.lam(step) == 1 for step in range(6)) == 4
        capsys.readouterr()
        figures = method._doubts(method.sampler)
        assert figures["clipped"] == pytest.approx(1.0 if warns else 0.0)
        assert ("forces were cut" in capsys.readouterr().err) == warns


def test_a_lead_takes_its_share_and_leaves_the_network_the_rest() -> None:
    """Draws N(0, v), target N(0, v): least squares for the share alone is the c whose score is that of v + s^2.

    (1 - c) / (1 + s^2) + c / v = 1 / (v + s^2). With v = 0.25 and s = 0.1: c = 0.9489, near 1, and near it stays.
    """
    v, s = 0.25, 0.1
    score = Score(Plain(name="plain", width=8, depth=2), dim=1, sigma=s, lead=lambda y: -y / v)
    c = (1 / (v + s * s) - 1 / (1 + s * s)) / (1 / v - 1 / (1 + s * s))
    assert c == pytest.approx(0.9489, abs=1e-4)
    z, w = np.polynomial.hermite_e.hermegauss(20)
    first, second = torch.meshgrid(torch.tensor(z), torch.tensor(z), indexing="ij")
    x, eps = (each.reshape(-1, 1) for each in (v**0.5 * first, second))
    weights = torch.outer(torch.tensor(w), torch.tensor(w)).flatten() / (2 * math.pi)
    score.double()

    def slope(share: float) -> float:
        with torch.no_grad():
            score.share.fill_(share)
        loss = (weights * implicit.dsm(score, x, eps, s)).sum()
        (grad,) = torch.autograd.grad(loss, score.share)
        return float(grad)

    assert abs(slope(c)) < 1e-12
    assert slope(0.0) < -1e-3 < 1e-3 < slope(2.0)


def test_a_lead_is_the_target_s_score_in_y_and_is_learned(tmp_path: Path) -> None:
    method = build("rosenbrock", steps=4, method_={"lead": True, "scale": 2.0, "sigma": 0.2, "lag": None})
    y = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    own = 2 * implicit.score_of(method.density.log_prob)(2 * y)
    longest = 3 * 2**0.5 / 0.2
    kept = own.norm(dim=1) <= longest
    assert 0 < int(kept.sum()) < 200
    found = method._lead(y)
    torch.testing.assert_close(found[kept], own[kept], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[~kept].norm(dim=1), torch.full_like(found[~kept, 0], longest))
    state = fit(method, tmp_path)
    assert float(state.nets["score"].share.detach()) != 0
    # the sampler's update leaves the score, its lead included, alone (S3)
    method = build("rosenbrock", method_={"lead": True, "lag": None})
    method.score.requires_grad_(False)
    *_, phase = method.phases(0)
    phase.loss(Batch(16), torch.Generator().manual_seed(0))[0].backward()
    assert method.score.share.grad is None
    # Fisher's force differentiates the score, and with it the lead
    fisher = build(
        "rosenbrock", method="implicit-fisher", method_={"lead": True, "form": "divergence", "kl_first": 0.0}
    )
    with torch.no_grad():
        fisher.score.share.fill_(1.0)
    at = (0.1 * y[:20]).requires_grad_()
    (inside,) = torch.autograd.grad(fisher.score(at).sum(), at)
    assert float(inside.abs().max()) > 1


def test_with_smoothing_the_lead_has_the_noise_of_the_step_and_cancels_it() -> None:
    """N(0.5, 1) known at every noise level, sigma from 0.8 to 0.2: at each step the lead is the score of that noise.

    Taken whole, it leaves u = 0 on any noised draw; the clean target's score would leave (0.5 - y) (1 - 1 / (1 + s^2)).
    """
    settings = {"anneal": 0.0, "sigma": 0.8, "sigma_end": 0.2, "lead": True, "clip": None, "lag": None}
    method = build("normal", steps=100, method_=settings)

    def noised(t: float) -> Any:
        return lambda x: -(x - 0.5).square().sum(1) / (2 * (1 + t * t))

    object.__setattr__(method.density, "noised", noised)
    method.smooth = True
    with torch.no_grad():
        method.score.share.fill_(1.0)
    y = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    for step in (0, 50, 99):
        list(method.phases(step))
        s = method.sigma(step)
        torch.testing.assert_close(method._lead(y), (0.5 - y) / (1 + s * s))
        u = implicit.kl(method.score, method.target(step, torch.Generator()), y)
        assert float(u.abs().max()) < 1e-5
        off = (0.5 - y) * (1 - 1 / (1 + s * s))
        assert float(off.abs().max()) > 0.05
