"""Solvers: one algorithm per file, each a pure function

    solve(denoiser, process, x, grid, gen, *, cond=None, trace=None) -> x at the end of the grid

denoiser  any callable (x, t, cond) -> x0
x         (B, ...), a sample of the process at time grid[0], for instance sigma(grid[0]) times standard normal noise
grid      (n + 1,) process times, float64 on the CPU, decreasing (`gentk.processes.grids.to_times`); ends at 0 for a
          clean sample
gen       source of a solver's own noise; the deterministic ones here ignore it
trace     called as trace(t, x) at every grid point, the first included

`ORDER` is the order of the global error in the step, `NFE(steps)` the number of denoiser calls when the grid ends at 0.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Trace = Callable[[Tensor, Tensor], None]
