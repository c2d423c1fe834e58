"""gentk's solvers beside diffusers' schedulers: time around the network, and error at equal network calls.

    python benchmarks/solvers.py [overhead] [error] [--repeats 9]

Prints one Markdown table per part; needs diffusers, no internet, one thread, three minutes of it. In both tables a
ratio is ours over theirs, in bold where it misses the aim: overhead at most half of theirs, error at most theirs.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from statistics import median
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from gentk import nets
from gentk.processes import grids
from gentk.processes.denoiser import Denoiser
from gentk.processes.process import ratio
from gentk.processes.schedules import Discrete
from gentk.recipe import schema
from gentk.solvers import ddim, dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, drawn, evaluations, sa_solver, unipc

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own deprecations
    import diffusers

P = Discrete()  # DDPM's: what the schedulers take without settings
SA, DPM = "SASolverScheduler", "DPMSolverMultistepScheduler"
UNIPC, DDIM = "UniPCMultistepScheduler", "DDIMScheduler"


@dataclass(frozen=True)
class Pair:
    """A scheduler of diffusers and a solver of gentk, with the settings that the two are compared in."""

    scheduler: str
    theirs: dict[str, Any]
    solver: Any
    ours: dict[str, Any] = field(default_factory=dict)

    def build(self, **more: Any) -> Any:
        own = {k: v for k, v in self.theirs.items() if k != "tau"}
        if self.scheduler == SA:
            own["tau_func"] = lambda t: self.theirs["tau"]
        if self.scheduler == DDIM:
            own["clip_sample"] = False
        return getattr(diffusers, self.scheduler)(**own, **more)

    @property
    def names(self) -> tuple[str, str]:
        module = self.solver.__name__.rpartition(".")[2].replace("_", "-")
        return named(self.scheduler.removesuffix("Scheduler"), self.theirs), named(module, self.ours)


def named(name: str, own: dict[str, Any]) -> str:
    return " ".join([name, *(f"{k}={v}" for k, v in own.items())])


def sa(predictor: int, corrector: int, tau: int, **more: Any) -> Pair:
    theirs = {"predictor_order": predictor, "corrector_order": corrector, "tau": tau}
    return Pair(SA, theirs, sa_solver, {"predictor": predictor, "corrector": corrector, "tau": tau, **more})


# Overhead: what a user's loop does in each library, less the network's own time

TIMED = (
    sa(3, 4, 0),
    sa(3, 4, 1),
    sa(2, 2, 0),
    sa(2, 2, 1),
    Pair(DPM, {"algorithm_type": "dpmsolver++"}, dpmpp_2m),
    Pair(DPM, {"algorithm_type": "sde-dpmsolver++"}, dpmpp_2m_sde),
    Pair(UNIPC, {}, unipc, {"order": 2, "variant": "bh2"}),
    Pair(DDIM, {}, ddim),
)
STEPS = (20, 50)
FIXED = (16, 3, 32, 32)  # the batch of the networks that cost nothing


class Fixed(nn.Module):
    """The network that costs nothing: says the same whatever it is asked."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out = out

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.out


class Timed(nn.Module):
    """A network that adds up the time spent in it, of this thread: what else the machine does counts little."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.spent = 0.0

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        start = time.thread_time()
        out = self.net(x, t, cond)
        self.spent += time.thread_time() - start
        return out

    def outside(self, loop: Callable[[], Any]) -> float:
        """Seconds that a loop takes outside of the network."""
        start, inside = time.thread_time(), self.spent
        loop()
        return time.thread_time() - start - (self.spent - inside)


@dataclass(frozen=True)
class Case:
    """A network as each library's user has it: model(x, timestep), what it predicts, and a maker of denoisers."""

    name: str
    net: Timed
    model: Callable[[Tensor, Tensor], Tensor]
    prediction: str
    denoiser: Callable[[], Callable[..., Tensor]]
    x: Tensor
    slow: bool = False


def cases() -> Iterator[Case]:
    gen = torch.Generator().manual_seed(0)
    x, out = torch.randn(2, *FIXED, generator=gen)
    fixed = Timed(Fixed(out))
    known = Denoiser(fixed, P, "eps", 1.0)
    # A Denoiser keeps its coefficients at each time: these have none yet, as their sigma_data is new every time.
    fresh = (Denoiser(fixed, P, "eps", 1 + 1e-9 * k) for k in itertools.count(1))
    yield Case("fixed x0", fixed, fixed, "sample", lambda: fixed, x)
    yield Case("fixed eps, Denoiser", fixed, fixed, "epsilon", lambda: known, x)
    yield Case("fixed eps, new Denoiser", fixed, fixed, "epsilon", lambda: next(fresh), x)
    section = schema.UNet(name="unet", width=38, multipliers=(1, 2), blocks=1)  # that of edm-digits, but wider
    unet = Timed(nets.build(section, shape=(1, 8, 8), classes=10).eval())
    for p in unet.parameters():
        if p.dim() > 1:  # some are zero before training, and the output with them
            p.data = torch.randn(p.shape, generator=gen) / math.sqrt(p[0].numel())
    labels = ratio(P, torch.arange(1.0, 1001.0, dtype=torch.float64)).log().div(4).float()
    trained = Denoiser(unet, P, "eps", 1.0)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return unet(x, labels[t].expand(len(x)))

    name = f"U-Net of {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M, Denoiser"
    yield Case(name, unet, model, "epsilon", lambda: trained, torch.randn(16, 1, 8, 8, generator=gen), slow=True)


def their_loop(scheduler: Any, case: Case, steps: int) -> Tensor:
    noise = {} if isinstance(scheduler, diffusers.UniPCMultistepScheduler) else {"generator": seeded()}
    scheduler.set_timesteps(steps)
    x = case.x
    for t in scheduler.timesteps:
        out = case.model(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, return_dict=False, **noise)[0]
    return x


def our_loop(pair: Pair, denoiser: Callable[..., Tensor], x: Tensor, steps: int) -> Tensor:
    """On the scheduler's own kind of grid: SA-Solver's ends at the lowest level, the others' at 0."""
    section: schema.Grid = schema.LinspaceGrid(name="linspace", to_zero=pair.scheduler != SA)
    if pair.scheduler == DDIM:
        section = schema.LeadingGrid(name="leading")
    grid = grids.build(section, steps, P)
    return pair.solver.solve(denoiser, P, x, grid, drawn(seeded()), **pair.ours)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def overhead(repeats: int) -> None:
    few = max(1, repeats // 3)
    print(f"Microseconds per step outside of the network; medians of {repeats} interleaved runs, U-Net {few}\n")
    head("network", "diffusers", "gentk", *(f"{who}, {n}" for n in STEPS for who in ("theirs", "ours", "ratio")))
    for case in cases():
        schedulers = [pair.build(prediction_type=case.prediction) for pair in TIMED]
        check(case, schedulers)
        found: dict[tuple[int, int], list[tuple[float, float]]] = {}
        times = range(few if case.slow else repeats)
        for _, steps, (k, pair) in itertools.product(times, STEPS, enumerate(TIMED)):
            found.setdefault((k, steps), []).append(around(case, pair, schedulers[k], steps))
        for k, pair in enumerate(TIMED):
            cells = []
            for steps in STEPS:
                theirs, ours = (median(v) for v in zip(*found[k, steps], strict=True))
                # of neighbours in time: the machine's own pace drops out
                of_theirs = median(ours / theirs for theirs, ours in found[k, steps])
                cells += [f"{theirs:.0f}", f"{ours:.0f}", verdict(of_theirs, 0.5)]
            row(case.name, *pair.names, *cells)
    x, gen, clock = torch.empty(FIXED), seeded(), Timed(nn.Identity())
    draws = median(clock.outside(lambda: drawn(gen)(x)) for _ in range(101))
    print(f"\nOf that, drawing noise of a fixed network's batch, in both: {1e6 * draws:.0f}")


def around(case: Case, pair: Pair, scheduler: Any, steps: int) -> tuple[float, float]:
    """Microseconds per step that their loop and ours spend outside of the network."""
    denoiser = case.denoiser()
    theirs = case.net.outside(lambda: their_loop(scheduler, case, steps))
    ours = case.net.outside(lambda: our_loop(pair, denoiser, case.x, steps))
    return 1e6 * theirs / steps, 1e6 * ours / steps


def check(case: Case, schedulers: list[Any]) -> None:
    """Both libraries see the same network: without noise and on one grid they draw the same samples."""
    for pair, scheduler in zip(TIMED, schedulers, strict=True):
        if pair.scheduler in (SA, DDIM) and not pair.ours.get("tau"):
            ours = our_loop(pair, case.denoiser(), case.x, 20)
            torch.testing.assert_close(ours, their_loop(scheduler, case, 20), rtol=1e-3, atol=1e-3)


# Error: root mean square against the exact flow from the same start, over 256 starts of two coordinates

NFE = (8, 12, 20, 50)
STARTS = torch.from_numpy(np.random.default_rng(0).normal(size=(256, 2)))
WEIGHT, VARIANCE = torch.tensor([0.3, 0.5, 0.2]).double(), torch.tensor([0.25, 0.4, 0.16]).double()
MEAN = torch.tensor([[1.5, 0.2], [-1.0, 0.8], [0.3, -1.4]]).double()

MEASURED = (
    sa(3, 4, 0),
    sa(2, 3, 0),
    sa(2, 2, 0),
    sa(3, 4, 0, lower_final=False),
    Pair(DPM, {"solver_order": 2}, dpmpp_2m),
    Pair(DPM, {"solver_order": 3}, dpmpp_3m, {"form": "corrected"}),
    Pair(DPM, {"solver_order": 3}, dpmpp_3m, {"form": "published"}),
    Pair(UNIPC, {"solver_order": 2}, unipc, {"order": 2, "variant": "bh2"}),
    Pair(UNIPC, {"solver_order": 3}, unipc, {"order": 3, "variant": "bh2"}),
    Pair(UNIPC, {"solver_order": 3}, unipc, {"order": 3, "variant": "bh1"}),
)
# what the grid is called -> gentk's section or None for diffusers' own, whether diffusers is made to take it too
GRIDS = {
    "diffusers' default for both": (None, True),
    "gentk's `lambda` for both": ("lambda", True),
    "each its default grid: `karras`, linspace": ("karras", False),
    "ours `lambda`, theirs its default": ("lambda", False),
}
SECTIONS = {"lambda": schema.LambdaGrid, "karras": schema.KarrasGrid}


def noise_at(x_hat: Tensor, s: float) -> Tensor:
    """Exact E[eps | x_hat] of the mixture at x_hat = x0 + s eps: (n, 2) -> (n, 2)."""
    total = VARIANCE + s**2
    offset = x_hat[:, None] - MEAN
    share = (WEIGHT.log() - total.log() - offset.square().sum(2) / total / 2).softmax(1)
    return s * ((share / total)[..., None] * offset).sum(1)


@cache
def flow(first: float, last: float) -> Tensor:
    """Where the probability flow takes the starts from one ratio to another, in x / alpha: d x_hat / ds = eps."""

    def slope(s: float, flat: np.ndarray) -> np.ndarray:
        return noise_at(torch.from_numpy(flat.reshape(-1, 2).copy()), s).numpy().ravel()

    begin = (first * STARTS).numpy().ravel()
    out = solve_ivp(slope, (first, last), begin, method="DOP853", rtol=1e-11, atol=1e-12)
    return torch.from_numpy(out.y[:, -1].reshape(-1, 2).copy())


def error(x: Tensor, first: float, last: float) -> float:
    return (x * math.hypot(1, last) - flow(first, last)).square().mean().sqrt().item()


def their_error(pair: Pair, nfe: int, sigmas: Tensor | None) -> float:
    """As shipped, with float32 levels, but on float64 samples; `sigmas` (nfe + 1,) replace its own."""
    scheduler = pair.build()
    scheduler.set_timesteps(nfe)
    if sigmas is not None:
        scheduler.sigmas = sigmas
    levels = scheduler.sigmas.tolist()
    x = levels[0] / math.hypot(1, levels[0]) * STARTS
    for s, t in zip(levels, scheduler.timesteps, strict=False):
        out = noise_at(scheduler.scale_model_input(x, t) * math.hypot(1, s), s)
        x = scheduler.step(out, t, x, return_dict=False)[0]
    return error(x, levels[0], levels[-1])


def our_error(pair: Pair, times: Tensor) -> float:
    def denoiser(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        s = float(ratio(P, t))
        x_hat = x * math.hypot(1, s)
        return x_hat - s * noise_at(x_hat, s)

    x = pair.solver.solve(denoiser, P, P.sigma(times[0]) * STARTS, times, silent, **pair.ours)
    first, last = ratio(P, times[[0, -1]]).tolist()
    return error(x, first, last)


def silent(x: Tensor) -> Tensor:
    raise AssertionError("a deterministic solver drew noise")


def afforded(pair: Pair, nfe: int, name: str | None, to_zero: bool) -> Tensor:
    """The times of the longest grid on which our solver makes no more than `nfe` calls."""

    def of(steps: int) -> Tensor:
        if name:
            return grids.build(SECTIONS[name](name=name, to_zero=to_zero), steps, P)
        k = np.linspace(0, P.steps - 1, steps + 1).round()[:0:-1]  # theirs: the last of these steps is cut off
        return torch.from_numpy(np.append(k + 1, 0.0 if to_zero else 1.0))

    fits = (n for n in range(nfe, 0, -1) if evaluations(pair.solver.solve, P, of(n), **pair.ours) <= nfe)
    return of(next(fits))


def errors() -> None:
    print(
        f"RMS error at {', '.join(map(str, NFE))} network calls: mixture of Gaussians, exact network, each against the"
    )
    print("exact flow from its own start to its own end (SASolver: the lowest level, as it cannot step to 0)\n")
    head("grid", "diffusers", "gentk", "theirs", "ours", "ratio")
    for (label, (name, forced)), pair in itertools.product(GRIDS.items(), MEASURED):
        # SASolverScheduler is NaN on a step to 0: where both take one grid it ends as theirs
        to_zero = not (forced and pair.scheduler == SA)
        ours = [our_error(pair, afforded(pair, nfe, name, to_zero)) for nfe in NFE]
        theirs = []
        for nfe in NFE:
            given = forced and name
            same = grids.build(SECTIONS[name](name=name, to_zero=to_zero), nfe, P) if given else None
            theirs.append(their_error(pair, nfe, None if same is None else ratio(P, same)))
        ratios = " ".join(verdict(a / b, 1.0) for a, b in zip(ours, theirs, strict=True))
        row(label, *pair.names, *(" ".join(f"{e:.2e}" for e in v) for v in (theirs, ours)), ratios)


# Both


def verdict(value: float, aim: float) -> str:
    """Two decimals, bold where they exceed the aim."""
    return f"**{value:.2f}**" if round(value, 2) > aim else f"{value:.2f}"


def head(*cells: str) -> None:
    row(*cells)
    print("|---" * len(cells) + "|")


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="overhead, error; both if none is named")
    parser.add_argument("--repeats", type=int, default=9, help="of every timed loop, a third of it with the U-Net")
    given = parser.parse_args()
    if unknown := set(given.parts) - {"overhead", "error"}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    with torch.no_grad():
        if not given.parts or "overhead" in given.parts:
            overhead(given.repeats)
            print()
        if not given.parts or "error" in given.parts:
            errors()


if __name__ == "__main__":
    main()
