"""One denoiser for every network: whatever the network predicts, what comes out is x0.

    symbol   meaning                                              EDM (arXiv:2206.00364, table 1)
    s        noise-to-signal ratio sigma / alpha                  sigma
    x/alpha  the sample in variance-exploding coordinates         x
    sd       standard deviation of the data, `sigma_data`         sigma_data
    n        sqrt(alpha^2 sd^2 + sigma^2), the scale of x_t       sqrt(sigma^2 + sigma_data^2)

By default the network sees x_t / n, of unit variance, and the label ln(s) / 4. In these terms EDM's preconditioning
c_skip, c_out, c_in applied to x / alpha reads

    D(x_t, t) = (alpha sd^2 / n^2) x_t + (sigma sd / n) F(x_t / n, ln(s) / 4, cond)

which stays finite at alpha = 0 (rectified flow at t = 1) and is x_t itself at t = 0.

Published networks were trained on other inputs, which `Inputs` describes: x_t as it is, and as a label an affine
function of ln(s) or of process time.

    network                                 process          predicts       scale    label
    EDM                                     ve               edm            unit     ln(s) / 4
    score_sde VP, EDM's VP baseline         vp               eps            process  999 t
    score_sde VE, EDM's VE baseline         ve               reverse-eps    process  ln(s) - ln 2
    RectifiedFlow (its time is 1 - t)       rectified-flow   reverse-flow   process  999 (1 - t)
    torchcfm (its time is 1 - t)            rectified-flow   reverse-flow   process  1 - t
    DDPM, guided-diffusion: timestep t - 1  discrete         eps            process  t - 1
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from gentk.processes.process import Process, expand, x0_from
from gentk.recipe.schema import Inputs, Predicts

Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x (B, ...), t () or (B,), cond (B,) int64 or None) -> x0 (B, ...): what solvers and losses call."""

_DEFAULT = Inputs()
_RATIOS = (1e-6, 1e4)  # the label's range: ln(s) must stay finite at t = 0 and where alpha = 0


class Denoiser(nn.Module):
    """A network, its process and what it predicts, as one function (x_t, t, cond) -> x0.

    `net(x, c_noise, cond)`: (B, ...), (B,), (B,) int64 or None -> (B, ...). `predicts` is "edm" for EDM's
    preconditioned form, else the kind of its raw output (`gentk.processes.process`). `sigma_data`: the data's scale.
    `inputs`: what the network takes for x_t and t.
    """

    def __init__(
        self, net: nn.Module, process: Process, predicts: Predicts, sigma_data: float, inputs: Inputs = _DEFAULT
    ) -> None:
        super().__init__()
        self.net = net
        self.process = process
        self.predicts = predicts
        self.sigma_data = sigma_data
        self.inputs = inputs

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (B, ...) noised at process time t, () or (B,) -> the expected clean sample (B, ...) in x's dtype.

        Coefficients are float64; the network runs in its own dtype, its label in float32 or wider: in bfloat16 four
        timesteps of a thousand would be one. Coefficients of one time for all are kept: solvers come back to the same
        few times with every batch.
        """
        if self.inputs.centre:
            centre = torch.tensor(self.inputs.centre, dtype=x.dtype, device=x.device).reshape(-1, *(1,) * (x.dim() - 2))
            alpha = expand(self.process.alpha(t.double()), x)
            return centre + self._centred(x - alpha * centre, t, cond)
        return self._centred(x, t, cond)

    def _centred(self, x: Tensor, t: Tensor, cond: Tensor | None) -> Tensor:
        """`forward` of data whose mean is 0."""
        dtype = next(self.net.parameters(), x).dtype
        wide = torch.promote_types(dtype, torch.float32)
        if _is_number(t):
            known = _coefficients(self.process, self.predicts, self.sigma_data, self.inputs, float(t))  # type: ignore[arg-type]
            c_in, label, c_skip, c_out = known
            c_noise = torch.full((x.shape[0],), label, device=x.device, dtype=wide)
            out: Tensor = self.net((c_in * x).to(dtype), c_noise, cond).to(x.dtype)
            return out if self.predicts == "x0" else c_skip * x + c_out * out
        at = _At.of(self.process, self.sigma_data, self.inputs, t.to(x.device, torch.float64).expand(x.shape[0]))
        out = self.net(at.scaled(x).to(dtype), at.label().to(wide), cond).to(x.dtype)
        return at.x0(self.predicts, x, out)


@dataclass(frozen=True)
class _At:
    """The formulas at the head of the file at times t, () or (B,): alpha, sigma and n computed once."""

    t: Tensor
    levels: tuple[Tensor, Tensor]
    n: Tensor
    sigma_data: float
    inputs: Inputs

    @classmethod
    def of(cls, process: Process, sigma_data: float, inputs: Inputs, t: Tensor) -> _At:
        alpha, sigma = process.alpha(t), process.sigma(t)
        return cls(t, (alpha, sigma), (alpha**2 * sigma_data**2 + sigma**2).sqrt(), sigma_data, inputs)

    def c_in(self) -> Tensor:
        return 1 / self.n if self.inputs.scale == "unit" else torch.ones_like(self.n)

    def scaled(self, x: Tensor) -> Tensor:
        return expand(self.c_in(), x) * x

    def label(self) -> Tensor:
        alpha, sigma = self.levels
        value = self.t if self.inputs.label == "time" else (sigma / alpha).clamp(*_RATIOS).log()
        return self.inputs.factor * value + self.inputs.offset

    def x0(self, predicts: Predicts, x: Tensor, out: Tensor) -> Tensor:
        if predicts != "edm":
            return x0_from(predicts, cast(Process, self), x, self.t, out)
        alpha, sigma = self.levels
        skip = alpha * self.sigma_data**2 / self.n**2
        return expand(skip, x) * x + expand(sigma * self.sigma_data / self.n, x) * out

    # what `x0_from` asks of a process, always at t

    def alpha(self, t: Tensor) -> Tensor:
        return self.levels[0]

    def sigma(self, t: Tensor) -> Tensor:
        return self.levels[1]


@lru_cache(maxsize=4096)  # processes are frozen dataclasses, sections frozen models
def _coefficients(
    process: Process, predicts: Predicts, sigma_data: float, inputs: Inputs, t: float
) -> tuple[float, ...]:
    """c_in, c_noise, c_skip, c_out of x0 = c_skip x + c_out F(c_in x, c_noise), by what the maps make of 1 and 0."""
    at = _At.of(process, sigma_data, inputs, torch.tensor(t, dtype=torch.float64))
    x, out = torch.eye(2, dtype=torch.float64)
    return (float(at.c_in()), float(at.label()), *at.x0(predicts, x, out).tolist())


def _is_number(t: Tensor) -> bool:
    """Whether t is one number, had without waiting for a device, by which nothing is differentiated."""
    if t.dim() or t.device.type != "cpu" or t.requires_grad or torch.compiler.is_compiling():
        return False
    return forward_ad.unpack_dual(t).tangent is None  # type: ignore[no-untyped-call]


def at_sigma(denoiser: Denoiser, x_hat: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
    """The denoiser in variance-exploding coordinates, whatever its process: x_hat = x0 + s eps -> x0.

    x_hat (B, ...), s () or (B,) finite. This is the form in which a denoiser is exported.
    """
    t = denoiser.process.t_of(s.double())
    out: Tensor = denoiser(expand(denoiser.process.alpha(t), x_hat) * x_hat, t, cond)
    return out
