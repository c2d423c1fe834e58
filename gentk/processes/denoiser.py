"""One denoiser for every network: whatever the network predicts, what comes out is x0.

    symbol   meaning                                              EDM (arXiv:2206.00364, table 1)
    s        noise-to-signal ratio sigma / alpha                  sigma
    x/alpha  the sample in variance-exploding coordinates         x
    sd       standard deviation of the data, `sigma_data`         sigma_data
    n        sqrt(alpha^2 sd^2 + sigma^2), the scale of x_t       sqrt(sigma^2 + sigma_data^2)

The network always sees x_t / n, of unit variance, and the label ln(s) / 4. In these terms EDM's preconditioning
c_skip, c_out, c_in applied to x / alpha reads

    D(x_t, t) = (alpha sd^2 / n^2) x_t + (sigma sd / n) F(x_t / n, ln(s) / 4, cond)

which stays finite at alpha = 0 (rectified flow at t = 1) and is x_t itself at t = 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gentk.processes.process import Process, expand, x0_from
from gentk.recipe.schema import Predicts

Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(x (B, ...), t () or (B,), cond (B,) int64 or None) -> x0 (B, ...): what solvers and losses call."""

_RATIOS = (1e-6, 1e4)  # the label's range: ln(s) must stay finite at t = 0 and where alpha = 0


class Denoiser(nn.Module):
    """A network, its process and what it predicts, as one function (x_t, t, cond) -> x0.

    `net(x, c_noise, cond)`: (B, ...), (B,), (B,) int64 or None -> (B, ...). `predicts` is "edm" for EDM's
    preconditioned form, else the kind of its raw output (`gentk.processes.process`). `sigma_data`: the data's scale.
    """

    def __init__(self, net: nn.Module, process: Process, predicts: Predicts, sigma_data: float) -> None:
        super().__init__()
        self.net = net
        self.process = process
        self.predicts = predicts
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (B, ...) noised at process time t, () or (B,) -> the expected clean sample (B, ...) in x's dtype.

        Coefficients are float64 on (B,) alone; the network runs in its own dtype.
        """
        t = t.to(x.device, torch.float64).expand(len(x))
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        n = (alpha**2 * self.sigma_data**2 + sigma**2).sqrt()
        c_noise = (sigma / alpha).clamp(*_RATIOS).log() / 4
        weight = next(self.net.parameters(), x)
        out: Tensor = self.net((expand(1 / n, x) * x).to(weight.dtype), c_noise.to(weight.dtype), cond).to(x.dtype)
        if self.predicts == "edm":
            return expand(alpha * self.sigma_data**2 / n**2, x) * x + expand(sigma * self.sigma_data / n, x) * out
        return x0_from(self.predicts, self.process, x, t, out)


def at_sigma(denoiser: Denoiser, x_hat: Tensor, s: Tensor, cond: Tensor | None = None) -> Tensor:
    """The denoiser in variance-exploding coordinates, whatever its process: x_hat = x0 + s eps -> x0.

    x_hat (B, ...), s () or (B,) finite. This is the form that the distillation losses are written in.
    """
    t = denoiser.process.t_of(s.double())
    out: Tensor = denoiser(expand(denoiser.process.alpha(t), x_hat) * x_hat, t, cond)
    return out
