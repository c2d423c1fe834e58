"""Which solver for which times of a flow: errors on a Gaussian, whose denoiser is exact, in 28 evaluations.

    python benchmarks/flow_grids.py

Prints, for data of standard deviation 0.5 and 1, how far the sample that began at one deviation of the noise ends from
where the exact ODE takes it, in per cent.
"""

from __future__ import annotations

import torch

from gentk.processes.grids import build
from gentk.processes.process import Process
from gentk.processes.schedules import RectifiedFlow
from gentk.recipe.schema import Grid, KarrasGrid, LambdaGrid, TimeGrid
from gentk.solvers import dpmpp_2m, euler, evaluations, heun, sa_solver, unipc

NFE = 28
TWICE = 3 * 0.001 / (1 + 2 * 0.001)  # the smallest time of SD3's scheduler before its second shift
GRIDS: dict[str, Grid] = {
    "shifted times (SD3's own)": TimeGrid(name="time", shift=3.0, t_min=TWICE),
    "shifted times down to 0": TimeGrid(name="time", shift=3.0, t_min=0.0),
    "even times": TimeGrid(name="time", t_min=0.0),
    "karras from 0.003": KarrasGrid(name="karras", sigma_min=0.003),
    "lambda from 0.003": LambdaGrid(name="lambda", sigma_min=0.003),
}
SOLVERS = {
    "euler": (euler, {}),
    "heun": (heun, {}),
    "dpmpp-2m": (dpmpp_2m, {}),
    "unipc": (unipc, {}),
    "sa-solver 2/2": (sa_solver, {"predictor": 2, "corrector": 2, "tau": 0.0}),
    "sa-solver 3/4": (sa_solver, {"predictor": 3, "corrector": 4, "tau": 0.0}),
}


def error(solver, own: dict, grid: Grid, std: float) -> float:
    process: Process = RectifiedFlow()

    def denoise(x, t, cond=None):
        alpha, sigma = process.alpha(t), process.sigma(t)
        return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x

    steps = NFE
    while evaluations(solver.solve, process, build(grid, steps, process), **own) > NFE:
        steps -= 1
    times = build(grid, steps, process)
    alpha, sigma = (float(f(times[0])) for f in (process.alpha, process.sigma))
    x = torch.full((1, 1), sigma, dtype=torch.float64)
    exact = std * sigma / (alpha**2 * std**2 + sigma**2) ** 0.5
    return 100 * (float(solver.solve(denoise, process, x, times, torch.zeros_like, **own)) / exact - 1)


if __name__ == "__main__":
    print(f"| grid | {' | '.join(SOLVERS)} |")
    print("|---" * (len(SOLVERS) + 1) + "|")
    for name, grid in GRIDS.items():
        cells = [" / ".join(f"{error(*each, grid, std):+.2f}" for std in (0.5, 1.0)) for each in SOLVERS.values()]
        print(f"| {name} | {' | '.join(cells)} |")
