"""The torch side of `train-ebm cd` and `pcd`: Langevin chains from the data, or from where they had stopped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gentk.losses.energy import Contrast, contrast, langevin
from gentk.processes import rows
from gentk.tasks.train_ebm._fitting import Fitting, Given, Remembering


def chaining(recipe: Any, where: torch.device) -> Fitting:
    """Contrastive divergence: chains start from the data of the batch."""
    config = recipe.method

    def loss(given: Given) -> Contrast:
        return contrast(given.energy, given.x, _chain(config, given, given.x))

    return Fitting(recipe, where, loss)


def persistent(recipe: Any, where: torch.device) -> Fitting:
    """Persistent contrastive divergence: chains go on, but for those that are renewed."""
    config = recipe.method

    def loss(given: Given) -> Contrast:
        memory, slots = fit.nets["energy"], given.slots
        assert isinstance(memory, Remembering)
        assert slots is not None
        x = memory.chains[slots]
        spread = (config.start * given.net.sd).expand(len(x))
        spread = _rows(spread if given.t is None else (spread**2 + given.t**2).sqrt(), x)
        fresh = rows.rand((len(x),), given.gen, device=x.device) < config.renew
        x = torch.where(_rows(fresh, x), given.net.centre + spread * given.noise(x), x)
        negatives = _chain(config, given, x)
        memory.chains[given.batch.whole(slots)] = given.batch.whole(negatives)
        return contrast(given.energy, given.x, negatives)

    fit = Fitting(recipe, where, loss, chains=max(config.buffer, recipe.train.batch), start=config.start)
    return fit


def _chain(config: Any, given: Given, x: Tensor) -> Tensor:
    size = config.step_size if given.t is None else config.step_size * given.t**2
    return langevin(
        lambda z: -given.energy(z),
        x,
        given.noise,
        steps=config.steps,
        step_size=size,
        temperature=config.temperature,
        clip=config.clip,
    )


def _rows(a: Tensor, x: Tensor) -> Tensor:
    return a.reshape(-1, *(1,) * (x.dim() - 1))
