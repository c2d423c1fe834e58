"""The denoiser of a linear process, with its matrix: EDM's preconditioning in every eigen-coordinate by itself.

    symbol      meaning
    y           the sample less the data's mean, flat (B, d): a linear score has no bias, so the process is about it
    z           coordinates (B, m) of y in which D is diagonal; what solvers work in
    diag        z = y
    full        z = Q^T y, Q orthogonal (d, d)
    low-rank    z = (U^T y, y - U U^T y), U orthonormal (d, r), m = r + d: the second part shares one D_i. More numbers
                than y has, but |z| = |y| and y = U z_1 + z_2
    sd_i        standard deviation of the data along a coordinate, or one for all

    D(z, t)_i = (alpha_i sd_i^2 / n_i^2) z_i + (sigma_i sd_i / n_i) F_i,   F = net(y of z_i / n_i, ln(s) / 4, cond)

with n_i^2 = alpha_i^2 sd_i^2 + sigma_i^2 and s the process's geometric mean. With sd_i and D diagonal in the same
coordinates the untrained F = 0 is the exact denoiser of Gaussian data.
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn

from gentk.errors import RecipeError
from gentk.processes.linear import Linear
from gentk.recipe.linear import Betas, Drift, Prior

_KEPT = 256  # directions of the data's covariance that are kept, at most; the rest by its diagonal
_LEAST = 1e-2  # of the mean spread: the least that a coordinate is taken to have, so that constant ones divide nothing


class LinearDenoiser(nn.Module):
    """A network and the linear process that it denoises; A, the basis and the data's moments are buffers.

    `net(x, c_noise, cond)`: (B, *shape), (B,), cond -> (B, *shape). Everything but the network is float64. A change of
    `strength` or `basis`, in place or by a state dict, is a change of the process.
    """

    mean: Tensor
    root: Tensor
    rest: Tensor
    offsets: Tensor
    shares: Tensor
    basis: Tensor
    strength: Tensor

    def __init__(
        self,
        net: nn.Module,
        betas: Betas,
        drift: Drift,
        shape: tuple[int, ...],
        spread: Literal["coordinate", "common"] = "coordinate",
        classes: int = 0,
    ) -> None:
        super().__init__()
        d = torch.Size(shape).numel()
        if drift.form == "low-rank" and drift.rank >= d:
            raise RecipeError(f"drift.rank: {drift.rank} of {d} dimensions", hint="use form: full")
        self.net, self.betas, self.drift, self.shape, self.spread = net, betas, drift, shape, spread
        columns = {"diag": 0, "low-rank": drift.rank, "full": d}[drift.form]
        groups = drift.rank + 1 if drift.form == "low-rank" else d
        wide = torch.float64
        self.register_buffer("mean", torch.zeros(d, dtype=wide))
        self.register_buffer("root", torch.zeros(d, min(d, _KEPT), dtype=wide))
        self.register_buffer("rest", torch.ones(d, dtype=wide))
        self.register_buffer("offsets", torch.zeros(classes, d, dtype=wide))
        self.register_buffer("shares", torch.zeros(classes, dtype=wide))
        self.register_buffer("basis", torch.eye(d, columns, dtype=wide))
        self.register_buffer("strength", torch.zeros(drift.cells, groups, dtype=wide))
        self._known: tuple[object, Linear, Tensor] | None = None

    @property
    def dim(self) -> int:
        """d, the numbers of one sample."""
        return len(self.mean)

    @torch.no_grad()  # a measurement of data
    def learn_data(self, x: Tensor, labels: Tensor | None = None) -> None:
        """Takes mean and covariance of samples x (N, *shape), and for a basis the directions of their variance.

        With classes and `labels` (N,): each class's mean and share, and the covariance within classes.
        """
        y = x.flatten(1).double()
        self.mean.copy_(y.mean(0))
        y = y - y.mean(0)
        if self.basis.shape[1]:
            values, vectors = torch.linalg.eigh(y.T @ y / len(y))
            self.basis.copy_(vectors[:, values.argsort(descending=True)[: self.basis.shape[1]]])
        if labels is not None:
            for k in range(len(self.shares)):
                own = y[labels == k]
                self.shares[k] = len(own) / len(y)
                self.offsets[k] = own.mean(0) if len(own) else 0.0
            y = y - self.offsets[labels]
        cov = y.T @ y / len(y)
        values, vectors = torch.linalg.eigh(cov)
        order = values.argsort(descending=True)[: self.root.shape[1]]
        self.root.copy_(vectors[:, order] * values[order].clamp_min(0).sqrt())
        self.rest.copy_((cov.diagonal() - self.root.square().sum(1)).clamp_min(0).sqrt())

    @property
    def index(self) -> Tensor:
        """The group of each coordinate, int64 (m,)."""
        d, form, where = self.dim, self.drift.form, self.mean.device
        if form != "low-rank":
            return torch.arange(d, device=where)
        r = self.drift.rank
        return torch.cat([torch.arange(r, device=where), torch.full((d,), r, device=where)])

    @property
    def counts(self) -> Tensor:
        """How many dimensions each group stands for, float64 (groups,)."""
        ones = torch.ones_like(self.strength[0])
        if self.drift.form == "low-rank":
            ones[-1] = self.dim - self.drift.rank
        return ones

    @property
    def process(self) -> Linear:
        """The process as A is now."""
        return self._current()[0]

    @property
    def scales(self) -> Tensor:
        """sd_i of each group, float64 (groups,)."""
        return self._current()[1]

    def _current(self) -> tuple[Linear, Tensor]:
        parts = (self.strength, self.basis, self.root, self.rest, self.offsets, self.shares)
        key = tuple((p._version, p.data_ptr()) for p in parts)
        if self._known is None or self._known[0] != key:
            self._known = (key, Linear(self.betas, 1 - 2 * self.strength, self.counts), self._scales())
        return self._known[1], self._known[2]

    def variances(self) -> Tensor:
        """The data's variance along the coordinates of each group, its mean for a group of several: (groups,)."""
        between = self.offsets * self.shares.sqrt()[:, None]
        variance = self.root.square().sum(1) + self.rest.square() + between.square().sum(0)  # of each dimension
        if self.drift.form == "diag":
            return variance
        each = (self.root.T @ self.basis).square().sum(0) + self.rest.square() @ self.basis.square()
        each = each + (between @ self.basis).square().sum(0)
        if self.drift.form == "full":
            return each
        left = ((variance.sum() - each.sum()) / (self.dim - self.drift.rank)).clamp_min(0)
        return torch.cat([each, left[None]])

    def _scales(self) -> Tensor:
        each = self.variances()
        mean = each @ self.counts / self.dim
        if self.spread == "common":
            each = torch.full_like(each, float(mean))
        return torch.where(mean > 0, each.sqrt().clamp_min(_LEAST * mean.sqrt()), 1.0)

    def matrix(self, cell: int = 0) -> Tensor:
        """A of one cell, float64 (d, d)."""
        a = self.strength[cell]
        if self.drift.form == "diag":
            return a.diag()
        if self.drift.form == "full":
            return self.basis * a @ self.basis.T
        one = torch.eye(self.dim, dtype=a.dtype, device=a.device)
        return self.basis * (a[:-1] - a[-1]) @ self.basis.T + a[-1] * one

    def to_z(self, y: Tensor) -> Tensor:
        """Coordinates (B, m) of y (B, d)."""
        if self.drift.form == "diag":
            return y
        basis = self.basis.to(y)
        inside = y @ basis
        return inside if self.drift.form == "full" else torch.cat([inside, y - inside @ basis.T], 1)

    def to_y(self, z: Tensor) -> Tensor:
        """The inverse: (B, m) -> (B, d)."""
        if self.drift.form == "diag":
            return z
        basis, r = self.basis.to(z), self.basis.shape[1]
        return z[:, :r] @ basis.T + (z[:, r:] if self.drift.form == "low-rank" else 0)

    def encode(self, x: Tensor) -> Tensor:
        """Samples (B, *shape) -> z (B, m)."""
        return self.to_z(x.flatten(1) - self.mean.to(x))

    def decode(self, z: Tensor) -> Tensor:
        """z (B, m) -> samples (B, *shape)."""
        return (self.to_y(z) + self.mean.to(z)).reshape(-1, *self.shape)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma and the data's scale sd of every coordinate at t, () or (B,): float64, broadcasting with z."""
        index = self.index
        return self.process.alphas(t)[..., index], self.process.sigmas(t)[..., index], self.scales[index]

    def noised(self, z: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """alpha z + sigma eps: z, eps (B, m), the latter `to_z` of standard normal noise."""
        alpha, sigma, _ = self.levels(t)
        return alpha.to(z) * z + sigma.to(z) * eps

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (B, *shape) noised at t, () or (B,) -> the expected clean sample (B, *shape)."""
        return self.decode(self.clean(self.encode(x), t, cond))

    def clean(self, z: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The same in coordinates, (B, m) -> (B, m): what solvers call."""
        alpha, sigma, sd = self.levels(t)
        n = (alpha**2 * sd**2 + sigma**2).sqrt()
        return (alpha * sd**2 / n**2).to(z) * z + (sigma * sd / n).to(z) * self.raw(z, t, cond)

    def raw(self, z: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """F in coordinates: the network's own output at z (B, m), t () or (B,)."""
        alpha, sigma, sd = self.levels(t)
        n = (alpha**2 * sd**2 + sigma**2).sqrt()
        dtype = next(self.net.parameters()).dtype
        label = self.process.log_ratio(t.double()).expand(len(z)) / 4
        scaled = self.to_y(z / n.to(z)).reshape(-1, *self.shape)
        out = self.net(scaled.to(dtype), label.to(z.device, torch.promote_types(dtype, torch.float32)), cond)
        return self.to_z(cast(Tensor, out).flatten(1).to(z.dtype))

    def score(self, z: Tensor, t: Tensor, clean: Tensor) -> Tensor:
        """grad log p_t in coordinates by what `clean` says at z: (alpha clean - z) / sigma^2."""
        alpha, sigma, _ = self.levels(t)
        return (alpha / sigma**2).to(z) * clean - (1 / sigma**2).to(z) * z

    @property
    def starts_from(self) -> int:
        """How many numbers `xi` of `start` has."""
        return self.root.shape[1] + self.dim + bool(len(self.shares))

    def start(self, eps: Tensor, xi: Tensor, prior: Prior, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """z (B, m) at time t, from unit noise eps (B, *shape) and xi (B, `starts_from`).

        `standard`: N(0, I), the bridge's own end. `kernel`: N(0, C_t), the published code's, which forgets what is left
        of the data. `exact`: N(0, m Cov m^T + C_t), the law of x_t itself where data are Gaussian; with classes where
        each of them is, of the class cond (B,) or, without a label, of one drawn by its share: a denoiser that is told
        the class finds a start without it as wrong as the class's mean is far.
        """
        noise = self.to_z(eps.flatten(1))
        if prior == "standard":
            return noise
        alpha, sigma, _ = self.levels(t)
        z = sigma.to(noise) * noise
        if prior == "exact":
            k, d = self.root.shape[1], self.dim
            data = xi[:, :k] @ self.root.T.to(xi) + xi[:, k : k + d] * self.rest.to(xi)
            if len(self.shares):
                last, part = len(self.shares) - 1, torch.special.ndtr(xi[:, -1].double())
                drawn = torch.searchsorted(self.shares.cumsum(0), part).clamp(max=last)
                known = drawn if cond is None else torch.where(cond > last, drawn, cond)  # beyond: "no label"
                data = data + self.offsets.to(xi)[known]
            z = z + alpha.to(noise) * self.to_z(data)
        return z

    def describe(self) -> dict[str, object]:
        """What a header says of the process, for `gentk.processes.models`."""
        return {
            "betas": self.betas.model_dump(mode="json"),
            "drift": self.drift.model_dump(mode="json"),
            "spread": self.spread,
        }
