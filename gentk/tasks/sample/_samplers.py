"""The torch side of implicit samplers: draws by one call, corrected by short chains that start at them."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import torch
from torch import Tensor

from gentk import targets
from gentk.engine import inputs, precision, ranks, rng
from gentk.engine.draw import batches
from gentk.engine.run import Job, Outcome, Run
from gentk.engine.stop import listening
from gentk.errors import GentkError, RecipeError, RunFailed
from gentk.nets.implicit import Loaded, load
from gentk.recipe.store import model_path
from gentk.recipe.targets import Target
from gentk.solvers import chains, hmc, mala
from gentk.solvers.chains import Kernel, LogProb
from gentk.targets import Density
from gentk.tasks.sample._files import write

_FIELDS = ("labels", "guidance", "guidance_interval", "threshold")
_TUNED_ON = 500  # draws


def execute(job: Job) -> Outcome:
    """Draws and writes the samples of a job. Raises GentkError for what the user can mend."""
    recipe, where = job.recipe, precision.device(job.device)
    model = load(recipe.model, where)
    for field in _FIELDS:
        if getattr(recipe, field) != type(recipe).model_fields[field].default:
            raise RecipeError(f"{field}: means nothing to a sampler of a density")
    if recipe.nfe not in (None, 1):
        raise RecipeError(f"nfe: a sampler makes one evaluation, not {recipe.nfe}", hint="leave nfe out")
    if "png" in recipe.save and len(model.shape) != 3:
        raise RecipeError("save: points have no PNG form", hint="--set save='[npz]'")
    correct = getattr(recipe.method, "correct", "none")
    if job.dry_run:
        then = f", then {recipe.method.transitions} transitions of {correct}" if correct != "none" else ""
        return Outcome("planned", answer=f"{recipe.n} draws of shape {model.shape} by one call{then}, in {job.out}")
    made_from = inputs.digests({recipe.model: model_path(recipe.model)})
    with ranks.opened(inputs.renewed(job, made_from)) as run:
        if run.done is None:
            run.update(inputs=made_from)
            with listening() as stop:
                stop.anywhere = True  # it can be done again
                ranks.by_first(lambda: _work(run, model, correct, where))
    return run.outcome()


def _target(model: Loaded, where: torch.device) -> Density:
    """Of the model's header. Raises RecipeError where what it names is no longer here."""
    try:
        return targets.density(Target(**_tuples(model.header["target"])), where)
    except GentkError as e:
        raise RecipeError(
            f"`{model.name}` was trained for `{model.header['target']['name']}`, which is not here: {e}",
            hint="method.correct=none needs only the sampler",
        ) from e


def _tuples(section: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}


def _work(run: Run, model: Loaded, correct: str, where: torch.device) -> None:
    recipe, config, net = run.job.recipe, run.job.recipe.method, model.net
    parts, seconds = [], 0.0
    for first, count in batches(recipe.first, recipe.n, recipe.batch):
        z = rng.noise(recipe.seed, first, count, (net.dim,), purpose="start").to(where)
        begun = time.perf_counter()
        with torch.no_grad():
            parts.append(net.coordinates(z))
        seconds += time.perf_counter() - begun
    y = torch.cat(parts)
    if not y.isfinite().all():
        raise RunFailed(f"`{model.name}`: draws are not finite", hint="the sampler has diverged; train it again")
    figures = {"n": float(recipe.n), "nfe": 1.0, "ms_per_sample": 1000 * seconds / recipe.n}
    density = None
    if correct != "none" or model.header["target"]["map"]:
        density = _target(model, where)
    if correct != "none":
        assert density is not None
        y, found = _corrected(y, density, model, config, recipe.seed, recipe.first)
        figures |= found
    x = net.place(y).cpu()
    if density is not None and density.constrain is not None:
        x = density.constrain(x)
    write(run, x.reshape(-1, *model.shape), None, {"figures": figures, "target": model.header["target"]})
    run.update(metrics=figures)


def _corrected(
    y: Tensor, density: Density, model: Loaded, config: Any, seed: int, first: int
) -> tuple[Tensor, dict[str, float]]:
    """y after the chains, and what they say of the draws: a sampler that is right is accepted and stays in place."""
    place = model.net.place

    def log_prob(at: Tensor) -> Tensor:
        return density.log_prob(place(at))

    module = {"mala": mala, "hmc": hmc}[config.correct]
    step = functools.partial(module.step, steps=config.steps) if config.correct == "hmc" else module.step
    size = config.step_size or _found(step, log_prob, y[:_TUNED_ON], module.TARGET_ACCEPT, seed)
    begun = time.perf_counter()
    result = chains.run(
        step,
        log_prob,
        y,
        rng.streams(seed, first, len(y), purpose="correct"),
        draws=config.transitions,
        step_size=size,
        keep=False,
    )
    with torch.no_grad():
        before, after = float(log_prob(y).double().mean()), float(log_prob(result.x).double().mean())
    return result.x, {
        "acceptance": result.acceptance,
        "step_size": size,
        "moved": float((result.x - y).norm(dim=1).mean()),
        "log_q_before": before,
        "log_q_after": after,
        "divergences": float(result.divergences),
        "ms_per_correction": 1000 * (time.perf_counter() - begun) / len(y),
    }


def _found(step: Kernel, log_prob: LogProb, y: Tensor, wanted: float, seed: int) -> float:
    """The step size whose first transition is accepted `wanted` of the time, by bisection of its logarithm.

    Not by adaptation along the chains: what the correction does must not depend on how many draws there are.
    """
    low, high = math.log(1e-6), math.log(10.0)
    for k in range(16):
        middle = (low + high) / 2
        noise = rng.streams(seed, 0, len(y), purpose=f"size {k}")
        _, log_accept = step(chains.init(log_prob, y), log_prob, math.exp(middle), noise)
        if float(log_accept.clamp(max=0).exp().mean()) > wanted:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)
