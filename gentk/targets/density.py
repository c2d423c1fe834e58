"""What a sampler is trained on: a log-density on a flat space, with whatever is known beside it."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Generator, Tensor

from gentk.errors import MissingAsset, RecipeError
from gentk.recipe.targets import Target as Section
from gentk.targets import published, tables
from gentk.targets.logistic import Logistic
from gentk.targets.maps import Map

LogProb = Callable[[Tensor], Tensor]
Kind = Literal["plane", "posterior", "energy", "function"]


@dataclass(frozen=True, eq=False)
class Density:
    """exp(log_prob) up to a constant, on points (N, D).

    `shape` is what one draw looks like, of D numbers in all: (D,) or an image's. `exact(n, gen)` draws (n, D), None
    where nobody can. `centres` (K, D) are modes whose masses can be told apart. `constrain` takes points to the
    parameters that the user's function knows, (N, D) -> (N, D). `estimate(gen)` is a log-density of fewer rows whose
    score is right in the mean. `noised(t)` is the log-density of draws with N(0, t^2 I) added, t within `levels`.
    `logistic` is what a posterior is made of. `middle` (D,) and `spread` are where the mass is and how wide, as far as
    it is known.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    log_prob: LogProb
    exact: Callable[[int, Generator], Tensor] | None = None
    centres: Tensor | None = None
    constrain: Callable[[Tensor], Tensor] | None = None
    estimate: Callable[[Generator], LogProb] | None = None
    noised: Callable[[float], LogProb] | None = None
    levels: tuple[float, float] | None = None
    middle: Tensor | None = None
    spread: float = 1.0
    logistic: Logistic | None = None

    @property
    def dim(self) -> int:
        """D."""
        return math.prod(self.shape)


def density(section: Section, where: torch.device | str = "cpu") -> Density:
    """The density that a recipe's `target:` section names.

    Raises RecipeError for an unknown name or for settings that it lacks, MissingAsset where a model, a table or a
    module is absent.
    """
    kind, colon, rest = section.name.partition(":")
    if not colon:
        found = _plane(section.name)
    elif kind == "logistic":
        found = _posterior(section, rest)
    elif kind == "ebm":
        found = _energy(section, rest, where)
    else:
        found = _function(section, kind, rest)
    return found if section.tail is None else _tailed(found, section.tail)


def _plane(name: str) -> Density:
    target = published.find(name)
    if target.log_prob is None:
        target.score(torch.zeros(1, 2))  # says which targets have a log-density
    assert target.log_prob is not None
    centres = None if target.centres is None else torch.tensor(target.centres)
    return Density(name, "plane", (2,), target.log_prob, target.sample, centres)


def _posterior(section: Section, name: str) -> Density:
    table = tables.load(
        name, root=section.root, label=section.label, header=section.header, drop=section.drop, rows=section.rows
    )
    model = Logistic(table, prior=section.prior, intercept=section.intercept)
    size = section.minibatch
    if size is not None and size > len(model):
        raise RecipeError(f"target.minibatch: {size} of {len(model)} rows", hint="leave it out to use all")

    def estimate(gen: Generator) -> LogProb:
        assert size is not None
        return lambda w: model.estimate(w, size, gen)

    return Density(section.name, "posterior", (model.dim,), model.log_prob, estimate=None if size is None else estimate)


def _energy(section: Section, name: str, where: torch.device | str) -> Density:
    from gentk.nets.energy import Energy
    from gentk.processes.energies import load_energy

    if not name:
        raise RecipeError("target.name: `ebm:` names no model", hint="ebm:RUN, a run of gentk train-ebm or its file")
    model = load_energy(name, where)
    shape, net, level = model.shape, model.net, section.level
    if level is not None and not model.header.get("levels"):
        raise RecipeError(f"target.level: `{name}` is a static energy, it has no noise levels", hint="leave it out")

    def log_prob(x: Tensor, t: float | None = level) -> Tensor:
        x = x.reshape(-1, *shape)
        return cast(Tensor, -net(x) if t is None else -net(x, t))

    middle, spread, noised, levels = None, 1.0, None, None
    if isinstance(net, Energy):  # the mean and the deviation of the data that it learned from
        middle, spread, levels = net.centre.expand(shape).reshape(-1).clone(), float(net.sd), net.levels
        if levels is not None:
            spread = math.hypot(spread, level or levels[0])

            def noised(t: float) -> LogProb:
                return lambda x: log_prob(x, t)

    return Density(section.name, "energy", shape, log_prob, noised=noised, levels=levels, middle=middle, spread=spread)


def _function(section: Section, module: str, name: str) -> Density:
    here = str(Path.cwd())
    if here not in sys.path:  # a user's file beside them, as `python -m` would find it
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as e:
        if e.name is not None and not f"{module}.".startswith(f"{e.name}."):
            raise
        known = ", ".join(published.names())
        raise MissingAsset(
            f"target `{section.name}`: no module `{module}`", hint=f"MODULE:FUNCTION, logistic:..., ebm:..., or {known}"
        ) from e
    function = getattr(found, name, None)
    if not callable(function):
        raise RecipeError(f"target `{section.name}`: `{module}` has no function `{name}`")
    if section.dim is None:
        raise RecipeError(f"target.dim: required for `{section.name}`", hint="--set target.dim=N, the parameters")
    if section.map is not None and len(section.map) != section.dim:
        raise RecipeError(f"target.map: {len(section.map)} supports for {section.dim} parameters")
    if section.map is None:
        return Density(section.name, "function", (section.dim,), function)
    change = Map(section.map)

    def log_prob(y: Tensor) -> Tensor:
        value: Tensor = function(change(y))
        return value + change.log_jacobian(y)

    return Density(section.name, "function", (section.dim,), log_prob, constrain=change)


def _tailed(of: Density, tail: float) -> Density:
    middle = of.middle

    def log_prob(x: Tensor) -> Tensor:
        from_middle = x if middle is None else x - middle.to(x)
        return of.log_prob(x) - from_middle.square().sum(1) / (2 * tail**2)

    estimate = of.estimate

    def part(gen: Generator) -> LogProb:
        assert estimate is not None
        inner = estimate(gen)
        return lambda x: inner(x) + log_prob(x) - of.log_prob(x)

    return Density(
        of.name,
        of.kind,
        of.shape,
        log_prob,
        centres=of.centres,
        constrain=of.constrain,
        estimate=None if estimate is None else part,
        middle=middle,
        spread=of.spread,
    )
