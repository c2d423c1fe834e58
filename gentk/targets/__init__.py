"""Densities: in the plane by name, posteriors of logistic regressions, energies of ours, and functions of the user's.

`Target`, `find` and `names` are the plane: those of values of order one, which also are data sets (`points:NAME`), and
by `find` those that the literature on samplers uses, on their own scales. `density` is what samplers are trained on, of
any kind and dimension.
"""

from __future__ import annotations

from gentk.targets.density import Density, density
from gentk.targets.plane import Target, names
from gentk.targets.published import find
from gentk.targets.published import names as published

__all__ = ["Density", "Target", "density", "find", "names", "published"]
