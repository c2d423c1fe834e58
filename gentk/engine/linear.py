"""Drawing from models of linear processes (`gentk.processes.linear_denoiser`), and the trajectories behind their A."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gentk.engine import dist, rng
from gentk.engine.draw import Watch, batches, labels, starts
from gentk.losses.bridge import Moments, trapezoid
from gentk.processes.grids import build
from gentk.processes.linear_denoiser import LinearDenoiser
from gentk.recipe.linear import Prior
from gentk.recipe.schema import KarrasGrid, Measure, TimeGrid
from gentk.solvers import Noise, coordinates, euler, evaluations, heun


@torch.no_grad()  # sampling only: the solvers themselves are differentiable
def draw(
    denoiser: LinearDenoiser,
    solve: Callable[..., Tensor],
    grid: Tensor,
    *,
    prior: Prior,
    cycle: tuple[int, ...],
    seed: int,
    first: int,
    n: int,
    where: torch.device,
    call: Callable[..., Tensor] | None = None,
    trace: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Samples `first` to `first + n` in one batch: float32 on the CPU (n, *shape), the same in any other batch.

    `solve` is one of `gentk.solvers.coordinates` for `grid`, process times from the noisiest. `call(z, t, cond)` stands
    in for the denoiser itself where it is guided; `trace(t, x)` sees the samples at every grid point. Raises RunFailed
    where the denoiser's output is not finite, with the call and its noise level.
    """
    eps = starts(seed, first, n, denoiser.shape)
    xi = rng.noise(seed, first, n, (denoiser.starts_from,), purpose="start-data")
    cond = labels(first, n, cycle)
    cond = None if cond is None else cond.to(where)
    z = denoiser.start(eps.to(where), xi.to(where), prior, grid[0], cond)
    watch = Watch(call or denoiser.clean)
    follow = None if trace is None else lambda t, z: trace(t, denoiser.decode(z))
    noise = _turned(denoiser, rng.streams(seed, first, n, purpose="solver"))
    z = solve(watch, None, z, grid, noise, cond=cond, trace=follow)
    watch.check(denoiser.process, f"samples {first} to {first + n - 1}")
    return denoiser.decode(z).float().cpu()


def _turned(denoiser: LinearDenoiser, noise: Noise) -> Noise:
    """Noise in coordinates from unit noise of samples: those of a low-rank D are more than the dimensions."""
    return lambda z: denoiser.to_z(noise(z[:, : denoiser.dim]))


@dataclass(frozen=True)
class LinearSampler:
    """A model of a linear process and how it is drawn from; what `gentk.engine.generative.Sampler` is for others."""

    denoiser: LinearDenoiser
    cycle: tuple[int, ...]
    where: torch.device
    prior: Prior
    solver: str = "heun"
    grid: Tensor | None = None
    own: dict[str, Any] | None = None

    @classmethod
    def of(
        cls,
        denoiser: LinearDenoiser,
        cycle: tuple[int, ...],
        where: torch.device,
        prior: Prior,
        measure: Measure | None,
    ) -> LinearSampler:
        """As a recipe's `measure:` says."""
        section = measure or Measure(features="identity")
        grid: KarrasGrid | TimeGrid = KarrasGrid(name="karras")
        if section.grid == "time":
            grid = TimeGrid(name="time", to_zero=True)
        return cls(denoiser, cycle, where, prior, section.solver, build(grid, section.steps, denoiser.process))

    @cached_property
    def _solve(self) -> Callable[..., Tensor]:
        assert self.grid is not None
        return coordinates.solver(self.solver, self.denoiser.process, self.denoiser.index, self.grid, **self.own or {})

    @property
    def nfe(self) -> int:
        """Network evaluations per sample."""
        assert self.grid is not None
        return evaluations({"heun": heun.solve, "euler": euler.solve}[self.solver], self.denoiser.process, self.grid)

    def __call__(self, n: int, seed: int, *, batch: int = 500) -> Tensor:
        """Samples 0 to n of `seed`: float32 (n, *shape) on the CPU; sample k is the same for every n and batch."""
        parts = dist.current().spread(batches(0, n, batch), lambda part: self.part(*part, seed))
        return torch.cat(parts)

    def part(self, first: int, n: int, seed: int, trace: Callable[[Tensor, Tensor], None] | None = None) -> Tensor:
        """Samples `first` to `first + n` of `seed`, in one batch."""
        assert self.grid is not None
        return draw(
            self.denoiser,
            self._solve,
            self.grid,
            prior=self.prior,
            cycle=self.cycle,
            seed=seed,
            first=first,
            n=n,
            where=self.where,
            trace=trace,
        )


@torch.no_grad()  # A's moments; the step in A differentiates nothing through the trajectories
def backward(
    denoiser: LinearDenoiser, *, n: int, steps: int, gen: torch.Generator, cond: Tensor | None = None
) -> Moments:
    """Moments of n trajectories of the reverse SDE from N(0, I), in `steps` steps even in time, float64.

    The prior is fixed: from the process's own end, A would drift for ever at zeta = 1, and below it grow until D < 0.
    Second-order SA-Solver with tau = 1 in the eigenbasis, whose evaluations are the nodes of the integrals.
    """
    grid = build(TimeGrid(name="time", to_zero=False), steps, denoiser.process)
    process, index = denoiser.process, denoiser.index
    own = {"predictor": 2, "corrector": 0, "tau": 1.0, "mode": "more", "rescale": False}
    solve = coordinates.solver("sa-solver", process, index, grid, **own)
    weights = trapezoid(process.integral(grid))
    full, cells, groups = denoiser.drift.form == "full", *denoiser.strength.shape
    size = (cells, denoiser.dim, denoiser.dim) if full else (cells, groups)
    second, cross = (torch.zeros(size, dtype=torch.float64) for _ in range(2))
    weight = torch.zeros(cells, dtype=torch.float64)
    at = iter(zip(grid, weights, strict=True))

    def add(z: Tensor, t: Tensor, clean: Tensor) -> None:
        time, w = next(at)
        assert time == t
        cell = int(process.cell(t))
        pull = denoiser.score(z, t, clean) - denoiser.strength[cell][index].to(z) * z
        if full:
            y, v = denoiser.to_y(z).double().cpu(), denoiser.to_y(pull).double().cpu()
            second[cell] += w * (y.T @ y) / n
            cross[cell] += w * (y.T @ v) / n
        else:
            for sums, other in ((second, z), (cross, pull)):
                each = (z.double() * other.double()).mean(0)
                sums[cell] += w * torch.zeros(groups, dtype=torch.float64).index_add_(0, index.cpu(), each.cpu())
        weight[cell] += w

    def call(z: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        clean = denoiser.clean(z, t, cond)
        add(z, t, clean)
        return clean

    def noise(z: Tensor) -> Tensor:
        unit = torch.randn(len(z), denoiser.dim, generator=gen, device=gen.device, dtype=z.dtype)
        return denoiser.to_z(unit.to(z.device))

    where = denoiser.mean.device
    z = noise(torch.empty(n, 1, device=where, dtype=next(denoiser.net.parameters(), torch.empty(0)).dtype))
    solve(call, None, z, grid, noise, cond=cond)  # calls the denoiser at every node, the last one too
    return Moments(second, cross, weight, denoiser.counts.cpu())
