"""diffusers' schedulers and the solvers here: the same samples from the same noises, or the explained difference.

Everything runs on the exact denoiser of the mixture in float64 at Stable Diffusion's noise levels. 1e-12 is asked for
where both sides compute in float64: 20 steps of ten rounded operations on samples below 64 are 20 x 10 x 64 x 1.1e-16 =
1.4e-12, were all errors of one sign.
"""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from gentk.processes.schedules import VE, VP
from gentk.solvers import ancestral, ddim, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, drawn, edm_stochastic, sa_solver, unipc
from tests.math.test_solver_aliases import other, same

HALF = 4e-5
"""Some of diffusers' schedulers round the sample to float32 at every step. Samples here stay below 64 in x / alpha, so
that is an error of 2^-19 = 1.9e-6; 20 of them, none amplified, are 3.8e-5. Measured: 1e-6; the nearest other method is
4e-3 away."""


@pytest.fixture
def scheduler():
    """(class, settings) -> a scheduler of diffusers for Stable Diffusion's noise levels, its levels made float64."""
    # on import and in step() it warns of its own deprecations and of optional packages; neither is about gentk
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers")

        def build(name, steps=20, **own):
            s = getattr(diffusers, name)(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, **own
            )
            # tables stay what float32 made of them, but arithmetic on them is float64's
            s.alphas_cumprod = s.alphas_cumprod.double()
            s.set_timesteps(steps)
            if hasattr(s, "sigmas"):
                s.sigmas = s.sigmas.double()
            return s

        yield build


def levels(s):
    """The ratios (N + 1,) a scheduler steps through; the last is 0 unless it says otherwise."""
    if hasattr(s, "sigmas"):
        return s.sigmas
    a = s.alphas_cumprod[s.timesteps]
    return torch.cat([((1 - a) / a).sqrt(), torch.zeros(1)])


def theirs(s, x, sigmas, mixture, process, **step):
    """The scheduler's own loop with the exact noise prediction at its levels; x (16, 2) at sigmas[0] in `process`."""
    for t, sigma in zip(s.timesteps, sigmas, strict=False):
        at = process.t_of(sigma)
        eps = (x - process.alpha(at) * mixture.denoise(process, x, at)) / process.sigma(at)
        s.scale_model_input(x, t)  # the network's input; unused, but diffusers logs a complaint without it
        x = s.step(eps, t, x, **step).prev_sample
    return x


def ours(solver, x, sigmas, mixture, process, **own):
    times, noise = process.t_of(sigmas), drawn(torch.Generator().manual_seed(7))
    return solver.solve(lambda x, t, cond: mixture.denoise(process, x, t), process, x, times, noise, **own)


def first(s, process):
    """A start for the scheduler's levels, the same at every call."""
    gen = torch.Generator().manual_seed(0)
    return process.alpha(process.t_of(levels(s)[0])) * levels(s)[0] * torch.randn(16, 2, generator=gen).double()


def pair(s, mixture, process, solver, own, **step):
    """(theirs, ours) from the same start."""
    x, sigmas = first(s, process), levels(s)
    return theirs(s, x, sigmas, mixture, process, **step), ours(solver, x, sigmas, mixture, process, **own)


def seeded():
    return {"generator": torch.Generator().manual_seed(7)}


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_diffusers_ddim(eta, scheduler, mixture):
    s = scheduler("DDIMScheduler", clip_sample=False)
    step = {"eta": eta, **(seeded() if eta else {})}
    same(*pair(s, mixture, VP(), ddim, {"eta": eta}, **step))


@pytest.mark.parametrize("variance", ["small", "large"])
def test_diffusers_ddpm(variance, scheduler, mixture):
    s = scheduler("DDPMScheduler", clip_sample=False, variance_type=f"fixed_{variance}")
    same(*pair(s, mixture, VP(), ancestral, {"variance": variance}, **seeded()))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("variant", "last"), [("bh1", "sigma_min"), ("bh2", "sigma_min"), ("bh2", "zero")])
def test_diffusers_unipc(order, variant, last, scheduler, mixture):
    """bh1 on a step to 0 is NaN in diffusers (inf x 0), so its grid ends at the smallest level."""
    s = scheduler("UniPCMultistepScheduler", solver_order=order, solver_type=variant, final_sigmas_type=last)
    same(*pair(s, mixture, VP(), unipc, {"order": order, "variant": variant}))


@pytest.mark.parametrize("form", ["midpoint", "heun"])
def test_diffusers_dpmpp_2m(form, scheduler, mixture):
    s = scheduler("DPMSolverMultistepScheduler", algorithm_type="dpmsolver++", solver_order=2, solver_type=form)
    published, exact = (dpmpp_2m, {}), (dpmpp_2m_sde, {"eta": 0.0, "form": "heun"})
    right, wrong = (published, exact) if form == "midpoint" else (exact, published)
    got, want = pair(s, mixture, VP(), *right)
    same(got, want, HALF)
    other(got, ours(wrong[0], first(s, VP()), levels(s), mixture, VP(), **wrong[1]))


@pytest.mark.parametrize("form", ["midpoint", "heun"])
def test_diffusers_dpmpp_2m_sde(form, scheduler, mixture):
    s = scheduler("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", solver_order=2, solver_type=form)
    noise = drawn(torch.Generator().manual_seed(7))
    step = s.step  # it draws float32 noise by itself; given ours, it rounds that
    s.step = lambda eps, t, x: step(eps, t, x, variance_noise=noise(x))
    same(*pair(s, mixture, VP(), dpmpp_2m_sde, {"eta": 1.0, "form": form}), HALF)


@pytest.mark.parametrize("steps", [dpmpp_3m.FEW - 1, dpmpp_3m.FEW, 20])
def test_diffusers_dpmpp_3m(steps, scheduler, mixture):
    """Published, and with `lower_final` below 15 steps, where the last but one falls to two evaluations."""
    s = scheduler("DPMSolverMultistepScheduler", steps, algorithm_type="dpmsolver++", solver_order=3)
    got, want = pair(s, mixture, VP(), dpmpp_3m, {"form": "published"})
    same(got, want, HALF)
    for wrong in ({"form": "corrected"}, {"form": "published", "lower_final": False}):
        if wrong["form"] == "corrected" or steps < dpmpp_3m.FEW:
            other(got, ours(dpmpp_3m, first(s, VP()), levels(s), mixture, VP(), **wrong))


def test_diffusers_euler(scheduler, mixture):
    same(*pair(scheduler("EulerDiscreteScheduler"), mixture, VE(), ddim, {}), HALF)


def test_diffusers_euler_ancestral(scheduler, mixture):
    s = scheduler("EulerAncestralDiscreteScheduler")
    same(*pair(s, mixture, VE(), ancestral, {}, **seeded()), HALF)


def test_diffusers_heun(scheduler, mixture):
    """Its levels stand twice, once for each of Heun's two calls."""
    s = scheduler("HeunDiscreteScheduler")
    once = torch.cat([s.sigmas[:1], s.sigmas[1::2]])
    x = first(s, VE())
    calls = torch.cat([once[:1], s.sigmas[1:-1]])
    same(theirs(s, x, calls, mixture, VE()), ours(edm_stochastic, x, once, mixture, VE()))


# SA-Solver: diffusers reads tau at the start of a step and keeps its noise on the last one


NEW = {"tau_at": "start"}


@pytest.fixture
def sa(scheduler, mixture):
    """(settings of SASolverScheduler) -> (theirs, the start, the levels), sigmas in float64."""

    def _sa(tau, predictor=3, corrector=4):
        s = scheduler(
            "SASolverScheduler",
            predictor_order=predictor,
            corrector_order=corrector,
            tau_func=lambda t: tau(int(t), int(s.timesteps[-1])),
        )
        return theirs(s, first(s, VP()), levels(s), mixture, VP(), **seeded()), first(s, VP()), levels(s), s

    return _sa


@pytest.mark.parametrize(("predictor", "corrector"), [(3, 4), (2, 2), (1, 1), (3, 3)])
def test_diffusers_sa_solver(predictor, corrector, sa, mixture):
    """Without noise, and with tau = 1 except on the last step, where the authors (and gentk) take none."""
    orders = {"predictor": predictor, "corrector": corrector}
    got, x, sigmas, _ = sa(lambda t, last: 0, **orders)
    same(got, ours(sa_solver, x, sigmas, mixture, VP(), tau=0.0, **orders), 1e-11)
    got, x, sigmas, _ = sa(lambda t, last: float(t != last), **orders)
    same(got, ours(sa_solver, x, sigmas, mixture, VP(), tau=1.0, **NEW, **orders), 1e-11)


def test_diffusers_sa_solver_adds_noise_on_its_last_step(sa, mixture):
    """As shipped: the difference is that of one step's noise, sigma sqrt(1 - e^-2h) of the smallest level."""
    got, x, sigmas, _ = sa(lambda t, last: 1)
    gap = (got - ours(sa_solver, x, sigmas, mixture, VP(), tau=1.0, **NEW)).abs()
    last = VP().sigma(VP().t_of(sigmas[-1])) * math.sqrt(1 - float(sigmas[-1] / sigmas[-2]) ** 2)
    assert 0.1 * last < gap.mean() < 2 * last


def test_diffusers_sa_solver_reads_tau_at_the_start(sa, mixture):
    """Its default, tau = 1 for timesteps 200 to 800: the same at the start of a step, far off at its end."""
    got, x, sigmas, s = sa(lambda t, last: float(200 <= t <= 800))
    noisy = [float(sigma) for t, sigma in zip(s.timesteps, sigmas, strict=False) if 200 <= t <= 800]
    interval = [(1.0, noisy[-1], noisy[0])]
    noise = drawn(torch.Generator().manual_seed(7))
    skipped = sum(int(t) > 800 for t in s.timesteps)  # it draws on every step, gentk where tau is not 0
    for _ in range(skipped):
        noise(x)

    def sample(at):
        times, own = VP().t_of(sigmas), iter(noises)
        return sa_solver.solve(
            lambda x, t, cond: mixture.denoise(VP(), x, t), VP(), x, times, lambda x: next(own), tau=interval, tau_at=at
        )

    noises = [noise(x) for _ in sigmas]
    same(got, sample("start"), 1e-11)
    other(got, sample("end"), 0.1)


def test_diffusers_sa_solver_in_its_own_float32(mixture):
    """Unpatched, its sigmas are float32: 24 bits of them leave 6e-8, grown a few hundred times by order 4's weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers")
        s = diffusers.SASolverScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", predictor_order=3, corrector_order=4,
            tau_func=lambda t: 0,
        )  # fmt: skip
        s.set_timesteps(20)
        got = theirs(s, first(s, VP()), s.sigmas, mixture, VP())
    gap = (got - ours(sa_solver, first(s, VP()), s.sigmas.double(), mixture, VP(), tau=0.0)).abs().max()
    assert 1e-9 < gap < 1e-4
