"""Forecasts of time series by a denoiser of rows: row after row, each drawn given a recurrent state of those before it.

symbol     meaning
x_t        row t of a window (d series), as in the file
y_t        what the bridge transports: (x_t - x_{t-1}) / step, or (x_t - centre) / spread (`target`)
centre, spread, step    mean and deviation of the rows and deviation of their steps: of the context, or of the
           training rows (`scaling`); those of a context are no less than a twentieth of the training rows'
features   of row t, behind the state that x_{t+1} is drawn by: step, level, the step that last season took from
           here, and the place in the season
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from gentk.engine.pictures import INK, chart
from gentk.nets.causal import CausalScore
from gentk.processes.grids import build
from gentk.processes.linear_denoiser import LinearDenoiser
from gentk.recipe.linear import Prior
from gentk.recipe.schema import TimeGrid
from gentk.recipe.series import Series
from gentk.solvers import coordinates

_FLOOR = 0.05  # of the training rows' deviation: the least that a context's is taken for
_CLIP = 10.0  # features beyond which nothing is learned


@dataclass(frozen=True)
class Scale:
    """Mean, deviation and deviation of the steps of the training rows: (d,) float32 each."""

    mean: Tensor
    spread: Tensor
    step: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Scale:
        """Of rows (T, d)."""
        rows = rows.float()
        return cls(rows.mean(0), rows.std(0), rows.diff(dim=0).std(0))

    def dump(self) -> list[list[float]]:
        """As a header holds it; `Scale(*map(torch.tensor, dumped))` is the inverse."""
        return [self.mean.tolist(), self.spread.tolist(), self.step.tolist()]


@dataclass(frozen=True)
class Frame:
    """Centre, spread and step (B, 1, d) of windows, and how rows become targets and features."""

    centre: Tensor
    spread: Tensor
    step: Tensor
    section: Series

    @classmethod
    def of(cls, context: Tensor, scale: Scale, section: Series) -> Frame:
        """Of contexts (B, context, d)."""
        spread, step = scale.spread, scale.step
        if section.scaling == "standard":
            return cls(scale.mean[None, None], spread[None, None], step[None, None], section)
        own = context.std(1, keepdim=True), context.diff(dim=1).std(1, keepdim=True)
        return cls(
            context.mean(1, keepdim=True), own[0].maximum(_FLOOR * spread), own[1].maximum(_FLOOR * step), section
        )

    def take(self, index: Tensor) -> Frame:
        """The frames of some windows."""
        if len(self.centre) == 1:
            return self
        return Frame(self.centre[index], self.spread[index], self.step[index], self.section)

    def targets(self, x: Tensor) -> Tensor:
        """y_1 to y_{T-1} of rows x (B, T, d)."""
        if self.section.target == "step":
            return x.diff(dim=1) / self.step
        return (x[:, 1:] - self.centre) / self.spread

    def row(self, y: Tensor, before: Tensor) -> Tensor:
        """x_t (B, d) of y_t, after `before` = x_{t-1}."""
        if self.section.target == "step":
            return before + y * self.step[:, 0]
        return self.centre[:, 0] + y * self.spread[:, 0]

    def features(self, x: Tensor, first: Tensor) -> Tensor:
        """(B, T, F) of rows x (B, T, d), which begin at rows `first` (B,) of the file; of row t by rows up to t."""
        season = self.section.season
        step = torch.cat([torch.zeros_like(x[:, :1]), x.diff(dim=1)], 1) / self.step
        parts = [step, (x - self.centre) / self.spread]
        if season > 1:
            back = torch.zeros_like(x)
            back[:, season - 1 :] = x[:, : x.shape[1] - season + 1] - x[:, season - 1 :]  # x_{t + 1 - season} - x_t
            parts.append(back / self.step)
            angle = 2 * math.pi * ((first[:, None] + torch.arange(x.shape[1]) + 1) % season) / season
            parts += [angle.sin()[..., None], angle.cos()[..., None]]
        return torch.cat(parts, 2).clamp(-_CLIP, _CLIP)


@torch.no_grad()  # sampling only
def forecast(
    denoiser: LinearDenoiser,
    scale: Scale,
    section: Series,
    context: Tensor,
    first: Tensor,
    *,
    count: int,
    prior: Prior,
    gen: torch.Generator,
) -> Tensor:
    """`count` paths (count, n, horizon, d), float64, after contexts (n, context, d) that begin at rows `first` (n,).

    By `section.sampler` in the eigenbasis, `nfe` evaluations a row, even in time: the reverse SDE in few steps leaves
    noise in, which adds up over the horizon.
    """
    net, where = denoiser.net, denoiser.mean.device
    assert isinstance(net, CausalScore)
    n, d, season = len(context), context.shape[2], section.season
    index = torch.arange(n).repeat(count)
    frame = Frame.of(context, scale, section).take(index)
    rows, at = context[index], first[index]
    grid = build(TimeGrid(name="time"), section.nfe, denoiser.process)
    name, own = ("sa-solver", {"tau": 1.0}) if section.sampler == "sde" else ("dpmpp-2m", {})
    solve = coordinates.solver(name, denoiser.process, denoiser.index, grid, **own)

    def unit(width: int) -> Tensor:
        return torch.randn(len(index), width, generator=gen).to(where)

    def noise(z: Tensor) -> Tensor:
        return denoiser.to_z(unit(d).to(z))

    states, state = net.encode(frame.features(rows, at).to(where))
    made = []
    for _ in range(section.horizon):
        z = denoiser.start(unit(d), unit(2 * d), prior, grid[0])
        z = solve(denoiser.clean, None, z, grid, noise, cond=states[:, -1])
        made.append(frame.row(denoiser.decode(z).cpu(), rows[:, -1]))
        at = at + rows.shape[1] - season
        rows = torch.cat([rows[:, -season:], made[-1][:, None]], 1)
        states, state = net.encode(frame.features(rows, at)[:, -1:].to(where), state)
    return torch.stack(made, 1).reshape(count, n, section.horizon, d).double()


def fan(context: Tensor, paths: Tensor, truth: Tensor | None, title: str) -> Image:
    """One series: its context (T,), the median and the central 50 and 90 % of its paths (S, horizon), and what came."""

    def on(axes: Any) -> None:
        low, quarter, middle, three, high = (paths.quantile(q, 0).numpy() for q in (0.05, 0.25, 0.5, 0.75, 0.95))
        at = range(len(context), len(context) + paths.shape[1])
        axes.plot(range(len(context)), context.numpy(), color="#71717a", lw=1, label="context")
        axes.fill_between(at, low, high, color=INK, alpha=0.15, lw=0, label="5 to 95 %")
        axes.fill_between(at, quarter, three, color=INK, alpha=0.3, lw=0, label="25 to 75 %")
        axes.plot(at, middle, color=INK, lw=1.2, label="median")
        if truth is not None:
            axes.plot(at, truth.numpy(), color="#18181b", lw=1.2, label="what came")
        axes.set_title(title, fontsize=9)
        axes.legend(fontsize=7, frameon=False, loc="upper left")

    return chart(on, 900, 420)
