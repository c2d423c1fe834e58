"""The torch side of `train-ebm dcd`: the kernel's deviation and the estimators."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gentk.errors import RecipeError
from gentk.losses.energy import Contrast, contrast, one_step, posterior, ranking
from gentk.processes import rows
from gentk.tasks.train_ebm._fitting import Fitting, Given

_WIDE = 0.5  # sigma over the data's scale beyond which a first-order expansion in sigma^2 says nothing


def diffusing(recipe: Any, where: torch.device) -> Fitting:
    """Diffusion contrastive divergence by the estimator of the recipe.

    Raises RecipeError for a one-step estimator with a wide kernel, whose modes would be lost.
    """
    config = recipe.method
    fit = Fitting(recipe, where, lambda given: _ESTIMATORS[config.estimator](config, given, _sigma(config, given)))
    if config.estimator == "one-step":
        sd = float(fit.nets["energy"].sd)  # type: ignore[arg-type]
        wide = _unit(config) if config.levels else _unit(config, sd) / sd
        if wide > _WIDE:
            raise RecipeError(
                f"method.sigma: the kernel is {wide:.3g} of the data's scale, too wide for `one-step`",
                hint="below 0.2: --set method.sigma=0.1, or another estimator",
            )
    return fit


def _unit(config: Any, sd: float = 1.0) -> float:
    """The kernel's largest deviation: of t with levels, else in the data's units."""
    if config.sigma is not None:
        return float(config.sigma[1] if isinstance(config.sigma, tuple) else config.sigma)
    levels = config.levels
    if levels is None:
        return 0.5 * sd
    return math.sqrt((levels.high / levels.low) ** (2 / (levels.count - 1)) - 1)


def _sigma(config: Any, given: Given) -> Tensor:
    """The kernel's deviation for each row, (B,)."""
    n, where = len(given.x), given.x.device
    if isinstance(config.sigma, tuple):
        low, high = map(math.log, config.sigma)
        sigma = (low + (high - low) * rows.rand((n,), given.gen, device=where)).exp()
    else:
        sigma = torch.full((n,), _unit(config, float(given.net.sd)), device=where)
    return sigma if given.t is None else sigma * given.t


def _ranking(config: Any, given: Given, sigma: Tensor) -> Contrast:
    xi = given.noise(given.x)
    candidates = torch.stack([given.noise(given.x) for _ in range(config.candidates)])
    return ranking(given.energy, given.x, sigma, xi, candidates, w=config.w)


def _posterior(config: Any, given: Given, sigma: Tensor) -> Contrast:
    tau = sigma**2
    y = given.x + sigma.reshape(-1, *(1,) * (given.x.dim() - 1)) * given.noise(given.x)
    if config.detail is not None:
        local = torch.full_like(tau, config.detail**2) + (0.0 if given.t is None else given.t**2)
    else:
        local = given.net.sd**2 if given.t is None else given.t**2
    step = config.step_size * tau * local / (tau + local)
    negatives = posterior(given.energy, y, tau, given.noise, steps=config.steps, step_size=step)
    return contrast(given.energy, given.x, negatives)


def _one_step(config: Any, given: Given, sigma: Tensor) -> Contrast:
    found = one_step(given.energy, given.x, sigma, given.noise(given.x), antithetic=config.antithetic)
    # in nats at every level, as the other estimators are: the one-step loss is DCD over tau / 2
    weight = 1.0 if given.t is None else given.t**2
    return found._replace(loss=found.loss * weight)


_ESTIMATORS = {"ranking": _ranking, "posterior": _posterior, "one-step": _one_step}
