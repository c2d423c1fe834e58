"""The noising processes that recipes can name, each in closed form with its exact inverse."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gentk.errors import RecipeError
from gentk.processes.process import Process
from gentk.recipe import schema


@dataclass(frozen=True)
class VE:
    """Variance exploding: alpha = 1, sigma = t (Karras et al. 2022, arXiv:2206.00364)."""

    t_min: float = 0.002
    t_max: float = 80.0
    name: ClassVar[str] = "ve"

    def alpha(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """t."""
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def t_of(self, ratio: Tensor) -> Tensor:
        """The ratio itself."""
        return ratio


@dataclass(frozen=True)
class VP:
    """Variance preserving, beta(t) linear on [0, 1] (Song et al. 2021, arXiv:2011.13456, appendix C).

    alpha = exp(-B/2), sigma = sqrt(1 - exp(-B)), B(t) = integral of beta from 0 to t, so that ln(1 + s^2) = B.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_max: float = 1.0
    name: ClassVar[str] = "vp"

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2

    def alpha(self, t: Tensor) -> Tensor:
        """exp(-B/2)."""
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - exp(-B)), without cancellation at small t."""
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def d_alpha(self, t: Tensor) -> Tensor:
        """-beta alpha / 2."""
        return -0.5 * self._beta(t) * self.alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """beta alpha^2 / (2 sigma); inf at t = 0."""
        return 0.5 * self._beta(t) * self.alpha(t) ** 2 / self.sigma(t)

    def t_of(self, ratio: Tensor) -> Tensor:
        """The root of B(t) = ln(1 + s^2), in the form that does not subtract nearly equal numbers."""
        b = torch.log1p(ratio**2)
        return 2 * b / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * b))


@dataclass(frozen=True)
class Cosine:
    """Variance preserving: alpha = cos(pi t / 2), sigma = sin(pi t / 2) (Salimans & Ho 2022, arXiv:2202.00512)."""

    t_min: float = 1e-4
    t_max: float = 0.9999
    name: ClassVar[str] = "cosine"

    def alpha(self, t: Tensor) -> Tensor:
        """cos(pi t / 2)."""
        return torch.cos(0.5 * math.pi * t)

    def sigma(self, t: Tensor) -> Tensor:
        """sin(pi t / 2)."""
        return torch.sin(0.5 * math.pi * t)

    def d_alpha(self, t: Tensor) -> Tensor:
        """-(pi / 2) sigma."""
        return -0.5 * math.pi * self.sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """(pi / 2) alpha."""
        return 0.5 * math.pi * self.alpha(t)

    def t_of(self, ratio: Tensor) -> Tensor:
        """(2 / pi) arctan s."""
        return torch.atan(ratio) * (2 / math.pi)


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight path: alpha = 1 - t, sigma = t (Liu et al. 2022, arXiv:2209.03003, with time reversed)."""

    t_min: float = 1e-4
    t_max: float = 1.0
    name: ClassVar[str] = "rectified-flow"

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """t."""
        return t

    def d_alpha(self, t: Tensor) -> Tensor:
        """-1."""
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """1."""
        return torch.ones_like(t)

    def t_of(self, ratio: Tensor) -> Tensor:
        """s / (1 + s), written so that s = 0 and s = inf give 0 and 1."""
        return 1 / (1 + 1 / ratio)


@dataclass(frozen=True)
class Discrete:
    """The process of networks with `steps` timesteps: DDPM (Ho et al. 2020, arXiv:2006.11239), Stable Diffusion; with
    `cosine` betas iDDPM (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17) and guided-diffusion at 64 pixels.

    Time k + 1 is timestep k, where s^2 = (1 - abar_k) / abar_k, abar_k = prod_{j <= k} (1 - beta_j). Between timesteps
    ln s is linear in time, from 0 to 1 s itself is; sigma = s / sqrt(1 + s^2) and alpha = c / sqrt(1 + s^2) throughout.
    c = `data_scale` for networks whose data were c times ours (0.5 for images in [-0.5, 0.5]); below time 1 it runs to
    1, linear in time, so that what arrives at 0 is data. sigma / alpha is s / c. At a
    timestep the derivatives are those of the piece below, into which solvers step. They jump there: solvers that use
    them (euler, heun) keep an error of some 1e-5 however fine the grid; those that work in s or lambda do not.
    """

    schedule: Literal["linear", "scaled-linear", "cosine"] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    steps: int = 1000
    data_scale: float = 1.0
    name: ClassVar[str] = "discrete"

    @property
    def t_min(self) -> float:
        """1, timestep 0."""
        return 1.0

    @property
    def t_max(self) -> float:
        """`steps`, the last timestep."""
        return float(self.steps)

    def _s(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """s and ds/dt in float64."""
        t, logs = t.double(), _log_ratios(self, t.device)
        k = (t.detach().ceil().long() - 1).clamp(1, self.steps - 1)  # between timesteps k - 1 and k: t in (k, k + 1]
        s = torch.exp(torch.lerp(logs[k - 1], logs[k], t - k))  # lerp is exact at both ends
        first = logs[0].exp()
        return torch.where(t <= 1, t * first, s), torch.where(t <= 1, first, s * (logs[k] - logs[k - 1]))

    def _c(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """c and dc/dt in float64."""
        t, slope = t.double(), self.data_scale - 1
        return 1 + slope * t.clamp_max(1), torch.where(t <= 1, slope, 0.0)

    def alpha(self, t: Tensor) -> Tensor:
        """c / sqrt(1 + s^2); c sqrt(abar_k) at k + 1."""
        (s, _), (c, _) = self._s(t), self._c(t)
        return (c * torch.rsqrt(1 + s**2)).to(t.dtype)

    def sigma(self, t: Tensor) -> Tensor:
        """s / sqrt(1 + s^2); sqrt(1 - abar_k) at k + 1."""
        s, _ = self._s(t)
        return (s * torch.rsqrt(1 + s**2)).to(t.dtype)

    def d_alpha(self, t: Tensor) -> Tensor:
        """c' / sqrt(1 + s^2) - c s s' / sqrt(1 + s^2)^3."""
        (s, ds), (c, dc) = self._s(t), self._c(t)
        root = torch.rsqrt(1 + s**2)
        return (dc * root - c * s * ds * root**3).to(t.dtype)

    def d_sigma(self, t: Tensor) -> Tensor:
        """s' / sqrt(1 + s^2)^3."""
        s, ds = self._s(t)
        return (ds * torch.rsqrt(1 + s**2) ** 3).to(t.dtype)

    def t_of(self, ratio: Tensor) -> Tensor:
        """The piece that holds s by bisection, then its inverse; above the last timestep its line goes on."""
        r, logs = ratio.double(), _log_ratios(self, ratio.device)
        first, s = logs[0].exp(), r * self.data_scale
        log = s.clamp_min(first).log()
        k = torch.searchsorted(logs, log).clamp(1, self.steps - 1)
        t = k + (log - logs[k - 1]) / (logs[k] - logs[k - 1])
        below = r / (first + r * (1 - self.data_scale))  # of r = t first / c(t)
        return torch.where(s <= first, below, t).to(ratio.dtype)


@cache
def _log_ratios(process: Discrete, device: torch.device) -> Tensor:
    """ln s at times 1 to `steps`, float64 (steps,), by ln(1 + s^2) = -ln abar: no digits go where abar is near 1."""
    if process.schedule == "cosine":
        angle = (torch.arange(process.steps + 1, dtype=torch.float64) / process.steps + 0.008) / 1.008 * math.pi / 2
        a, b = angle[:-1], angle[1:]  # beta = 1 - (cos b / cos a)^2, written so that small ones keep their digits
        betas = ((b - a).sin() * (a + b).sin() / a.cos() ** 2).clamp_max(0.999)
    else:
        power = 2 if process.schedule == "scaled-linear" else 1
        start, end = process.beta_start ** (1 / power), process.beta_end ** (1 / power)
        betas = torch.linspace(start, end, process.steps, dtype=torch.float64) ** power
    return torch.expm1(-torch.log1p(-betas).cumsum(0)).log().div(2).to(device)


def build(section: schema.Process) -> Process:
    """The process that a recipe's section describes. Raises RecipeError for an empty range of times."""
    process: Process
    match section:
        case schema.VE():
            process = VE(section.sigma_min, section.sigma_max)
        case schema.VP():
            process = VP(section.beta_min, section.beta_max, section.t_min)
        case schema.Cosine():
            process = Cosine(section.t_min, section.t_max)
        case schema.RectifiedFlow():
            process = RectifiedFlow(section.t_min, section.t_max)
        case schema.Discrete():
            process = Discrete(**section.model_dump(exclude={"name"}))
    if not process.t_min < process.t_max:
        raise RecipeError(
            f"process `{process.name}`: the smallest time {process.t_min:g} is not below the largest {process.t_max:g}",
            hint="lower t_min (ve: sigma_min) or raise t_max (ve: sigma_max)",
        )
    return process
