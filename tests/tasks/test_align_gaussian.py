"""Diff-Instruct++ and DI* on Gaussians: the gradients of the generator's phase against closed forms, trained optima.

Reference N(0.3, 0.7^2), student mean + std z at (-0.4, 1.1), reward -(x - 1.5)^2 / (2 0.9^2), levels 0.1, 0.5, 1 and 2.
Per level, with a = std^2 + s^2 and b = tau^2 + s^2,

    dKL/dmean = (mean - m) / b              dKL/dstd = std (1/b - 1/a)
    dr/dmean  = -(mean - 1.5) / 0.81        dr/dstd  = -std / 0.81

The fields are linear in x_t, so losses are polynomials of degree 2 in z and eps: the points +-1 of both, at equal
weights, are an exact quadrature, and tolerances are those of rounding. The method draws one level per sample where the
closed forms add up over levels: alpha_rew is a quarter of alpha here and gradients are counted four times.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor

from gentk.engine import rng
from gentk.engine.method import Batch
from gentk.losses.divergence import diff_instruct
from gentk.tasks.align._aligning import Aligning
from tests.tasks.align_toys import PEAK, WIDTH, Affine, Pair, around, denoiser, gauss
from tests.tasks.toys import fit, freeze

pytestmark = pytest.mark.usefixtures("double")

LEVELS = (0.1, 0.5, 1.0, 2.0)
M, TAU = 0.3, 0.7
START = (-0.4, 1.1)
CONDITIONAL, PLAIN = (0.8, 0.5), (0.0, 1.2)
WEIGHTS = {"s2": lambda s: 1.0, "const": lambda s: s**2}  # our names -> w(s) of the KL

# dipp.md, section 8: gradient in (mean, std), and what it would be with the bracket left in the graph (R5)
PUBLISHED = {
    ("s2", 0): ((-2.971647, 2.305796), (-3.8101, 4.6116)),
    ("s2", 1): ((-5.317326, 3.663821), (-6.1558, 5.9696)),
    ("s2", 10): ((-26.428437, 15.886043), (-27.2669, 18.1918)),
    ("const", 0): ((-1.343893, 0.572192), (-1.5520, 1.1444)),
    ("const", 10): ((-24.800683, 14.152439), (-25.0088, 14.7246)),
}


def closed_form(weight: str, alpha: float, mean: float, std: float) -> Tensor:
    w = WEIGHTS[weight]
    d_mean = sum(w(s) * (mean - M) / (TAU**2 + s**2) for s in LEVELS) + alpha * (mean - PEAK) / WIDTH**2
    d_std = sum(w(s) * std * (1 / (TAU**2 + s**2) - 1 / (std**2 + s**2)) for s in LEVELS) + alpha * std / WIDTH**2
    return torch.tensor([d_mean, d_std])


def exact(method: Aligning) -> Tensor:
    """The gradient of the generator's phase over the quadrature's points, times the number of levels."""
    points = torch.tensor(list(product((-1.0, 1.0), (-1.0, 1.0), LEVELS)))
    z, eps, s = points[:, :1], points[:, 1:2], points[:, 2]
    cond = torch.zeros(len(z), dtype=torch.int64) if method.model.classes else None
    method.core.generate = lambda n, gen: (method.core.of(z, cond), cond)  # type: ignore[method-assign]
    method.core.noise = lambda law, n, gen: (s, eps)  # type: ignore[method-assign]
    freeze(method, "generator")  # type: ignore[arg-type]
    loss, _ = method._generator_loss(Batch(len(z)), rng.generator(0))
    net = method.nets["generator"].net
    return len(LEVELS) * torch.cat(torch.autograd.grad(loss, (net.mean, net.std)))


def at_start(monkeypatch: pytest.MonkeyPatch, method: dict[str, Any], teacher: Any = None) -> Aligning:
    """The student at START, the teaching assistant exact for it."""
    made = around(monkeypatch, denoiser(Affine(*START)), teacher or gauss(M, TAU), method)
    made.nets["fake"].net = gauss(*START).net
    return made


def relative(got: Tensor, want: Any) -> float:
    want = torch.as_tensor(want)
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize(("weight", "alpha"), PUBLISHED)
def test_the_gradient_is_the_closed_form(monkeypatch: pytest.MonkeyPatch, weight: str, alpha: float) -> None:
    """To 1e-12 of the closed form, to the digits of the published table, and R5 is told apart, with its own numbers."""
    method = at_start(monkeypatch, {"name": "dipp", "alpha_rew": alpha / 4, "weight": weight})
    got, (want, broken) = exact(method), PUBLISHED[weight, alpha]
    assert relative(got, closed_form(weight, alpha, *START)) < 1e-12
    assert got.tolist() == pytest.approx(want, abs=6e-7)
    method.objective = lambda x0, d_teacher, d_fake: ((d_fake - d_teacher) * x0).flatten(1).sum(1)
    method.through = True
    assert exact(method).tolist() == pytest.approx(broken, abs=6e-5)


def test_guidance_is_a_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    """sum KL - omega E r_imp, r_imp = sum log p(x_t | c) / p(x_t): differentiated as it stands, and the method's."""
    omega = 1.5
    mean, std = (torch.tensor(v, requires_grad=True) for v in START)
    (m_c, t_c), (m_u, t_u) = CONDITIONAL, PLAIN
    total = torch.zeros(())
    for s in LEVELS:
        a = std**2 + s**2

        def log_density(m: float, tau: float, s: float = s, a: Tensor = a) -> Tensor:  # E over x_t ~ N(mean, a)
            return -0.5 * ((mean - m) ** 2 + a) / (tau**2 + s**2) - 0.5 * torch.tensor(tau**2 + s**2).log()

        kl = -0.5 * a.log() - log_density(m_c, t_c)
        total = total + kl - omega * (log_density(m_c, t_c) - log_density(m_u, t_u))
    want = torch.stack(torch.autograd.grad(total, (mean, std)))
    assert want.tolist() == pytest.approx((-19.519325, 13.466247), abs=6e-7)
    config = {"name": "dipp", "alpha_rew": 0.0, "weight": "s2"}
    teacher = denoiser(Pair(CONDITIONAL, PLAIN))
    got = exact(at_start(monkeypatch, config | {"alpha_cfg": omega}, teacher))
    assert relative(got, want) < 1e-12
    # R6: guidance_scale is 1 + omega, a scale taken for an omega is far off
    assert relative(exact(at_start(monkeypatch, config | {"alpha_cfg": omega + 1}, teacher)), want) > 0.1
    outside = exact(at_start(monkeypatch, config | {"alpha_cfg": omega, "cfg_placement": "out"}, teacher))
    assert relative(outside, want) < 1e-12, "the KL's gradient is linear in the reference: in and out are one"


@pytest.mark.parametrize(("omega", "alone"), [(0.0, CONDITIONAL), (-1.0, PLAIN)])
def test_omega_counts_from_no_guidance(
    monkeypatch: pytest.MonkeyPatch, omega: float, alone: tuple[float, float]
) -> None:
    """R6: 0 is the conditional reference, -1 the unconditional one."""
    config = {"name": "dipp", "alpha_rew": 0.0, "weight": "s2", "alpha_cfg": omega}
    got = exact(at_start(monkeypatch, config, denoiser(Pair(CONDITIONAL, PLAIN))))
    want = exact(at_start(monkeypatch, {"name": "dipp", "alpha_rew": 0.0, "weight": "s2"}, gauss(*alone)))
    assert relative(got, want) < 1e-12


def test_di_star_is_the_score_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the Fisher divergence at a frozen law, per level g / (a b) and 2 std (1/b - 1/a) / a, and the reward."""
    config = {"name": "di-star", "distance": "l2", "weight": "s4", "alpha_rew": 0.25}
    mean, std = START
    want = [(mean - PEAK) / WIDTH**2, std / WIDTH**2]
    for s in LEVELS:
        a, b = std**2 + s**2, TAU**2 + s**2
        want[0] += (mean - M) / (a * b)
        want[1] += 2 * std * (1 / b - 1 / a) / a
    assert relative(exact(at_start(monkeypatch, config)), want) < 1e-12
    detached = at_start(monkeypatch, config)
    detached.through = False  # sim.md, T3: without the graphs it is another method
    with pytest.raises(ValueError, match="differentiable in x_t"):
        exact(detached)


def test_di_star_places_guidance_in_or_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Out: the plain divergence, and -omega sg[D(c) - D(null)] . x0 by itself; in: something else."""
    teacher, omega = denoiser(Pair(CONDITIONAL, PLAIN)), 1.5
    config = {"name": "di-star", "distance": "l2", "weight": "s4", "alpha_rew": 0.0}
    out = exact(at_start(monkeypatch, config | {"alpha_cfg": omega, "cfg_placement": "out"}, teacher))
    inside = exact(at_start(monkeypatch, config | {"alpha_cfg": omega}, teacher))
    plain = exact(at_start(monkeypatch, config, teacher))
    alone = at_start(monkeypatch, config, gauss(*CONDITIONAL))
    alone.objective, alone.through = diff_instruct, False
    alone.nets["fake"].net = gauss(*PLAIN).net  # D_fake - D_teacher is D(null) - D(c)
    assert relative(out, plain + omega * exact(alone)) < 1e-12
    assert relative(inside, out) > 0.05


# --- trained, with a teaching assistant that learns -------------------------------------------------------------------


def trained(monkeypatch: pytest.MonkeyPatch, folder: Path, config: dict[str, Any], teacher: Any) -> tuple[Any, Any]:
    """(the averaged student's network, the method) after a run of the engine: K_TA = 2, Adam (0, 0.999), EMA."""
    own = {"train": {"steps": STEPS, "batch": 512}}
    method = around(monkeypatch, denoiser(Affine(M, TAU)), teacher, config | {"fake_steps": 2, "warmup": 20}, **own)

    def noise(law: Any, n: int, gen: torch.Generator) -> tuple[Tensor, Tensor]:
        s = torch.tensor(LEVELS)[torch.randint(len(LEVELS), (n,), generator=gen)]
        return s, torch.randn((n, 1), generator=gen)

    method.core.noise = noise  # type: ignore[method-assign]
    state = fit(folder, method, half_life=512 * 40)  # type: ignore[arg-type]
    return state.averaged["generator"].net, method


STEPS = 700
# dipp.md, section 2: the closed-form minimisers (mean, std)
OPTIMA = {0: (0.300, 0.700), 1: (0.570, 0.587), 10: (1.193, 0.267)}


@pytest.mark.parametrize("alpha", OPTIMA)
def test_training_ends_at_the_optimum(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, alpha: int) -> None:
    config = {"name": "dipp", "alpha_rew": alpha / 4, "weight": "s2"}
    net, method = trained(monkeypatch, tmp_path, config, gauss(M, TAU))
    assert float(closed_form("s2", alpha, *OPTIMA[alpha]).abs().max()) < 0.03 * (1 + alpha), "it is the minimiser"
    assert float(net.mean.detach()) == pytest.approx(OPTIMA[alpha][0], abs=0.02)
    assert float(net.std.detach()) == pytest.approx(OPTIMA[alpha][1], abs=0.02)
    looked = method.watcher._look(denoiser(net))[0]
    assert method.watcher.alarms(looked) == [], "a spread of 38 % and more is not a collapse"


def test_weight_at_large_noise_cannot_see_a_collapse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """w = s^2 and alpha = 10: mean 1.339, std 0; R13: the run must raise the alarm (std < 0.05)."""
    config = {"name": "dipp", "alpha_rew": 2.5, "weight": "const"}
    net, method = trained(monkeypatch, tmp_path, config, gauss(M, TAU))
    assert float(net.mean.detach()) == pytest.approx(1.339, abs=0.02)
    assert abs(float(net.std.detach())) < 0.05
    (remark,) = method.watcher.alarms(method.watcher._look(denoiser(net))[0])
    assert remark["kind"] == "flag"
    assert "diversity has collapsed" in remark["words"]


@pytest.mark.parametrize("omega", [0.0, 1.0, 3.0])
def test_a_guided_student_ends_at_the_closed_form(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, omega: float
) -> None:
    """sum_s [(1 + omega) (mean - m_c) / b_c - omega (mean - m_u) / b_u] = 0, and of the precisions likewise."""
    (m_c, t_c), (m_u, t_u) = CONDITIONAL, PLAIN
    p = sum((1 + omega) / (t_c**2 + s**2) for s in LEVELS)
    q = sum(omega / (t_u**2 + s**2) for s in LEVELS)
    std = brentq(lambda v: p - q - sum(1 / (v**2 + s**2) for s in LEVELS), 1e-3, 5)
    config = {"name": "dipp", "alpha_rew": 0.0, "weight": "s2", "alpha_cfg": omega}
    net, _ = trained(monkeypatch, tmp_path, config, denoiser(Pair(CONDITIONAL, PLAIN)))
    assert float(net.mean.detach()) == pytest.approx((p * m_c - q * m_u) / (p - q), abs=0.02)
    assert float(net.std.detach()) == pytest.approx(std, abs=0.02)
