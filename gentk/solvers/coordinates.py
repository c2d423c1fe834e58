"""The solvers of this package for linear processes: each coordinate has its own alpha, sigma and so its own weights.

A coordinate of D's eigenbasis is a process of one dimension, whose solver steps are the plan for its own lambda. The
plans of all coordinates have the same calls, at the same times, so they run as one, with a row of weights where there
was a number. `euler` and `heun` step in time and need no plan.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from gentk.errors import RecipeError
from gentk.processes.linear import Linear
from gentk.solvers import multistep
from gentk.solvers.multistep import Nodes, Step, Update


@dataclass(frozen=True)
class Columns:
    """`multistep.Update` with a row of numbers for each of its own: (m,) each. `noise` is their largest."""

    scale: Tensor
    weights: tuple[Tensor, ...]
    noise: float
    spread: Tensor

    def __call__(self, z: Tensor, evaluations: Sequence[Tensor], xi: Tensor | None) -> Tensor:
        """The update of z (B, m), the newest evaluation first."""
        out = z * self.scale.to(z)
        for weight, d in zip(self.weights, evaluations, strict=False):
            out = out.addcmul_(d, weight.to(z))
        if self.noise:
            assert xi is not None
            out = out.addcmul_(xi, self.spread.to(z))
        return out


def _columns(updates: Sequence[Update], index: Tensor) -> Update:
    length = max(len(u.weights) for u in updates)
    table = torch.tensor(
        [[u.scale, u.noise, *u.weights, *[0.0] * (length - len(u.weights))] for u in updates], dtype=torch.float64
    ).to(index.device)
    scale, spread, *weights = table[index].T.contiguous()
    return cast(Update, Columns(scale, tuple(weights), max(u.noise for u in updates), spread))


def _merged(steps: Sequence[Step], index: Tensor) -> Step:
    first = steps[0]
    corrector = None if first.corrector is None else _columns([cast(Update, s.corrector) for s in steps], index)
    return Step(_columns([s.predictor for s in steps], index), corrector, first.evaluate, first.again)


@dataclass(frozen=True)
class _Columns:
    """A linear process as `Process` of all coordinates: alpha and so on are (1, m) at a time ()."""

    process: Linear
    index: Tensor

    def __getattr__(self, name: str) -> Any:
        own = {"alpha": "alphas", "sigma": "sigmas", "d_alpha": "d_alphas", "d_sigma": "d_sigmas"}
        if name not in own:
            return getattr(self.process, name)
        return lambda t: getattr(self.process, own[name])(t)[None, self.index]


def check(name: str) -> Any:
    """The solver's module. Raises RecipeError for one that works in one noise level only."""
    module = importlib.import_module(f"gentk.solvers.{name.replace('-', '_')}")
    if name not in ("euler", "heun") and not hasattr(module, "plan"):
        raise RecipeError(
            f"`{name}` steps in one noise level, which a linear process has not", hint="use sa-solver, dpmpp-2m, ..."
        )
    return module


def solver(name: str, process: Linear, index: Tensor, grid: Tensor, **own: Any) -> Callable[..., Tensor]:
    """The solver's `solve` for z (B, m), `index` (m,) being each coordinate's group; its weights are made once.

    `grid` must be the one that it is called with. Raises RecipeError for a solver that works in one noise level only,
    and as the solver itself does.
    """
    module = check(name)
    if name in ("euler", "heun"):
        columns = _Columns(process, index)
        return lambda denoiser, _, z, grid, noise, **call: module.solve(denoiser, columns, z, grid, noise, **call)
    alpha, sigma = process.alphas(grid).T.tolist(), process.sigmas(grid).T.tolist()
    plans = [module.plan(nodes(a, s), **own) for a, s in zip(alpha, sigma, strict=True)]
    steps = [_merged(each, index) for each in zip(*plans, strict=True)]

    def solve(
        denoiser: Any, _: Any, z: Tensor, grid: Tensor, noise: Any, *, cond: Any = None, trace: Any = None
    ) -> Any:
        return multistep.run(denoiser, z, grid, steps, noise, cond=cond, trace=trace)

    return solve


def nodes(alpha: Sequence[float], sigma: Sequence[float]) -> Nodes:
    """The nodes of one coordinate, by its alpha and sigma at the points of a grid."""
    return Nodes.of(cast(Any, _Given(alpha, sigma)), torch.arange(len(alpha), dtype=torch.float64))


@dataclass(frozen=True)
class _Given:
    """What `Nodes.of` asks of a process, at the points of one grid."""

    alphas: Sequence[float]
    sigmas: Sequence[float]

    def alpha(self, t: Tensor) -> Tensor:
        return torch.tensor(self.alphas, dtype=torch.float64)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.tensor(self.sigmas, dtype=torch.float64)
