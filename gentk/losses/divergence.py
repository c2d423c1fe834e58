"""Generator losses whose gradient is that of a divergence between the generator's noised law and the teacher's.

All of them live in denoiser space, which is the same for every process:

    symbol        meaning
    x0            the generator's sample, with its graph
    x_t           alpha x0 + sigma eps, eps fresh: independent of the noise that made x0
    s             sigma / alpha
    d_teacher     D_q(x_t), the teacher's denoiser at that level
    d_fake        D_psi(x_t), a denoiser fitted to the generator's own samples
    delta         d_teacher - d_fake
    y             s_psi - s_q = -delta / s^2, the difference of the scores at x_t / alpha
    t             s / (1 + s), flow time; v = (x - D) / t the velocity there, v_q - v_psi = -delta / t

Both denoisers are evaluated with their PARAMETERS frozen (`requires_grad_(False)`) and with gradient through x_t: under
`no_grad` the same lines minimise something else (`sim` refuses that). Every loss is summed over the dimensions and
returned per sample; weights and the mean over the batch are the caller's.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gentk.errors import RecipeError
from gentk.losses import distances
from gentk.losses.distances import Distance
from gentk.processes.times import flow_time

Path = Literal["frozen", "full"]
Weight = Literal["const", "sid-l1", "edm", "s2", "s4", "velocity"]

_SMALLEST_TIME = 1e-3  # where the velocity weight, 1 / t^2, stops growing


def sim(
    x0: Tensor,
    d_teacher: Tensor,
    d_fake: Tensor,
    *,
    distance: Distance,
    c: float | Literal["auto"],
    path: Path,
) -> Tensor:
    """Score implicit matching's generator loss (arXiv:2410.16794), d'(delta) . (d_fake - x0): (B, ...) -> (B,).

    Its value is not the divergence's (in the mean it is near 0 for a fitted fake score); its gradient is, where d_fake
    is the generator's own denoiser D_theta:

        frozen    d/dtheta E_{x_t ~ pi} d(D_q(x_t) - D_theta(x_t)) at fixed sampling law pi = p_sg(theta), the paper's
        full      d/dtheta E_{x_t ~ p_theta} d(D_q(x_t) - D_theta(x_t)), by adding d(delta), whose gradient is the
                  sampling law's share

    The unit is the denoiser's: d sees delta = -s^2 y, and `c` is compared with |delta|; `auto` is iCT's 0.00054 sqrt(d)
    for samples of d numbers. For l2 the loss is that of d = |delta|^2 / 2, delta . (d_fake - x0), so that

        weight 2 / s^4    gives the score-space Fisher divergence E |s_theta - s_q|^2
        frozen, full      are SiD's loss (arXiv:2404.04057) with its alpha = 1 and 0.5

    For the other distances the weight is 1. The identity behind it: for a FIXED field f, E[f(x_t) . (D_theta(x_t) -
    x0)] is 0 for every theta; its derivative moves the one on D_theta, which nobody can take, onto x0 and x_t. So
    nothing here may be detached: not delta or the normaliser in d' (they are f at a moving x_t), not d_fake, not x0.

    Raises ValueError if x0 carries a graph that d_teacher or d_fake lack.
    """
    _alive(x0, d_teacher, d_fake)
    scale = 0.00054 * x0[0].numel() ** 0.5 if isinstance(c, str) else c
    delta = d_teacher - d_fake
    loss = (distances.slope(delta, distance, scale) * (d_fake - x0)).flatten(1).sum(1)
    if path == "full":
        loss = loss + distances.value(delta, distance, scale)
    return 0.5 * loss if distance == "l2" else loss


def sid(x0: Tensor, d_teacher: Tensor, d_fake: Tensor, *, alpha: float) -> Tensor:
    """Score identity distillation's loss (arXiv:2404.04057), delta . (d_teacher - x0 - alpha delta): (B, ...) -> (B,).

    Its gradient is that of `sim` for l2 plus (1 - alpha) times that of |delta|^2 with both denoisers frozen: alpha = 1
    is the frozen path and alpha = 1/2 the full one; above 1 it is an extrapolation and no divergence's gradient.

    Raises ValueError as `sim` does.
    """
    _alive(x0, d_teacher, d_fake)
    delta = d_teacher - d_fake
    return (delta * (d_teacher - x0 - alpha * delta)).flatten(1).sum(1)


def fgm(x0: Tensor, d_teacher: Tensor, d_fake: Tensor, *, path: Path) -> Tensor:
    """Flow generator matching's loss (arXiv:2410.19310) times t^2: (B, ...) -> (B,). With weight `velocity` it is

        frozen    L2 = 2 (v_q - v_psi) . (v_psi - (x1 - x0)), whose gradient is that of E |v_theta - v_q|^2 at fixed law
        full      L1 + L2, L1 = |v_q - v_psi|^2, whose gradient is that of E_{x_t ~ p_theta} |v_theta - v_q|^2 in full

    x1 - x0 = (x_t - x0) / t turns both into denoisers: L2 = 2 delta . (d_fake - x0) / t^2, twice SIM's l2. The target
    x1 - x0 carries the generator's graph like all else. Raises ValueError as `sim` does.
    """
    return 2 * sim(x0, d_teacher, d_fake, distance="l2", c=0.0, path=path)


def diff_instruct(x0: Tensor, d_teacher: Tensor, d_fake: Tensor) -> Tensor:
    """Diff-Instruct's generator loss (arXiv:2305.18455), sg(d_fake - d_teacher) . x0: (B, ...) -> (B,).

    Its gradient is s^2 times that of KL(p_theta,s || q_s): weight 1 / s^2 gives the KL divergence itself. Its value
    means nothing.
    """
    # Detached because the KL's gradient is E[(s_theta - s_q)(x_t) . dx_t/dtheta]: the field is a factor, and the
    # explicit dependence of log p_theta on theta integrates to 0.
    field = (d_fake - d_teacher).detach()
    return (field * x0).flatten(1).sum(1)


def _alive(x0: Tensor, d_teacher: Tensor, d_fake: Tensor) -> None:
    if torch.is_grad_enabled() and x0.requires_grad and not (d_teacher.requires_grad and d_fake.requires_grad):
        raise ValueError("teacher and fake score must be differentiable in x_t: freeze their parameters, not the graph")


def weight(name: Weight, sigma: Tensor, x0: Tensor, d_teacher: Tensor, *, sigma_data: float = 0.5) -> Tensor:
    """w on a generator loss per sample: sigma () or (B,) the noise-to-signal ratio, x0 (B, ...) -> (B,) without graph.

    const 1; s2, s4: sigma^-2, sigma^-4; edm: (sigma^2 + sd^2) / (sigma sd)^2; velocity: 1 / t^2 with t = sigma /
    (1 + sigma) held above 1e-3, which turns squared differences of denoisers into those of velocities; sid-l1:
    1 / mean|x0 - d_teacher|, the mean held above 1e-5 (SiD's code). The last depends on x0 and so is a preconditioner
    outside the theorem: it bends the gradient by little (cosine 0.988 at s = 3) and moves no fixed point, where delta
    is 0.
    """
    s = sigma.detach().to(x0.device, torch.float64).expand(len(x0))
    match name:
        case "const":
            w = torch.ones_like(s)
        case "s2":
            w = s**-2
        case "s4":
            w = s**-4
        case "edm":
            w = s**-2 + sigma_data**-2
        case "velocity":
            w = flow_time(s).clamp_min(_SMALLEST_TIME) ** -2
        case "sid-l1":
            # Detached: the weight scales the loss of a sample, it is not something to be minimised.
            w = 1 / (x0 - d_teacher).detach().abs().flatten(1).mean(1).clamp_min(1e-5)
        case _:
            raise RecipeError(f"unknown weight `{name}`")
    return w.to(x0.dtype)
