"""The torch side of the solvers: model, grid within the budget, batches that survive a stop, files."""

from __future__ import annotations

import importlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from gentk.engine import dist, inputs, linear, pictures, precision, ranks
from gentk.engine.draw import batches, draw, labels
from gentk.engine.paths import followed, paths_picture, straightness
from gentk.engine.progress import Progress
from gentk.engine.run import Job, Outcome, Run
from gentk.engine.stop import listening
from gentk.errors import RecipeError
from gentk.processes.denoiser import Denoise, Denoiser
from gentk.processes.energies import load_denoiser
from gentk.processes.grids import build, to_times
from gentk.processes.guidance import cost, guided
from gentk.processes.linear_denoiser import LinearDenoiser
from gentk.processes.models import Model, fast_layout
from gentk.processes.process import Process, ratio
from gentk.processes.thresholding import thresholded
from gentk.recipe.registry import method_module
from gentk.recipe.schema import GivenGrid, Grid
from gentk.recipe.store import model_path
from gentk.solvers import called_at, coordinates, evaluations
from gentk.tasks.sample._files import replace_tensors, write

_NFE = 35  # EDM's count for CIFAR-10


@dataclass(frozen=True)
class Plan:
    """What is drawn from, by what, on which grid."""

    model: Model
    denoise: Denoise
    process: Process
    solve: Callable[..., Tensor]
    own: dict[str, Any]
    grid: Tensor
    cycle: tuple[int, ...]
    nfe: int
    linear: LinearDenoiser | None = None

    def draw(
        self, seed: int, first: int, n: int, where: torch.device, trace: Callable[[Tensor, Tensor], None] | None = None
    ) -> Tensor:
        """Samples `first` to `first + n` of `seed`, in one batch; `trace(t, x)` sees those of a linear process."""
        if self.linear is not None:
            return linear.draw(
                self.linear,
                self.solve,
                self.grid,
                prior=self.model.header["prior"],
                cycle=self.cycle,
                seed=seed,
                first=first,
                n=n,
                where=where,
                call=self.denoise,
                trace=trace,
            )
        return draw(
            self.denoise,
            self.process,
            self.solve,
            self.grid,
            shape=self.model.shape,
            cycle=self.cycle,
            seed=seed,
            first=first,
            n=n,
            where=where,
            **self.own,
        )


def solver(config: Any) -> tuple[Callable[..., Tensor], dict[str, Any]]:
    """The `solve` of a method's section, and its own settings."""
    module = importlib.import_module(f"gentk.solvers.{config.name.replace('-', '_')}")
    return module.solve, config.model_dump(exclude={"name"})


def longest(
    section: Grid, budget: int | None, process: Process, solve: Callable[..., Tensor], own: dict[str, Any]
) -> Tensor:
    """The grid with as many steps as `budget` evaluations pay for; a given grid as it is.

    Raises RecipeError where not one step can be paid, or the given grid costs more than a stated budget.
    """
    if isinstance(section, GivenGrid):
        steps = len(section.sigmas) - (section.sigmas[-1] == 0 or not section.to_zero)
        grid = build(section, steps, process)
        needs = evaluations(solve, process, grid, **own)
        if budget is not None and needs > budget:
            raise RecipeError(
                f"nfe: {budget} is too few: the given grid needs {needs}", hint="raise nfe, or leave it out"
            )
        return grid
    budget = budget or _NFE
    low, high = 0, budget  # `low` steps can be paid; every step costs one evaluation or more
    while low < high:
        middle = (low + high + 1) // 2
        if evaluations(solve, process, build(section, middle, process), **own) <= budget:
            low = middle
        else:
            high = middle - 1
    if not low:
        raise RecipeError(f"nfe: {budget} is too few for one step of this solver on this grid", hint="raise nfe")
    return build(section, low, process)


def prepare(recipe: Any, where: torch.device) -> Plan:
    """The model, what the solver calls, its grid and the classes to cycle through."""
    config = recipe.method
    kind = method_module("sample", config.name).KIND
    if recipe.model.startswith("targets:"):
        raise RecipeError(
            f"`{recipe.model}` is a density, not a model", hint=f"gentk sample hmc --model {recipe.model}"
        )
    model = load_denoiser(recipe.model, kinds=("denoiser", "generator", "bridge"), where=where)
    is_linear = model.header["kind"] == "bridge"
    if model.header["kind"] != kind and not (is_linear and kind == "denoiser"):
        other = "one-step" if model.header["kind"] == "generator" else "heun"
        raise RecipeError(
            f"`{recipe.model}` is a {model.header['kind']}, `{config.name}` samples a {kind}",
            hint=f"gentk sample {other} --model {recipe.model}",
        )
    wanted = tuple(range(model.classes)) if recipe.labels is None else recipe.labels
    if wanted and max(wanted) >= model.classes:
        has = f"classes 0 to {model.classes - 1}" if model.classes else "no classes"
        raise RecipeError(f"labels: {max(wanted)} is outside the model's range: `{recipe.model}` has {has}")
    if recipe.guidance != 1:
        _check_guidance(model)
    if "png" in recipe.save and len(model.shape) != 3:
        raise RecipeError("save: points have no PNG form", hint="--set save='[npz]'")
    denoiser = model.net
    assert isinstance(denoiser, Denoiser | LinearDenoiser)
    fast_layout(denoiser)
    if is_linear:
        coordinates.check(config.name)
    process, (solve, own) = denoiser.process, solver(config)
    if kind == "generator":
        if recipe.nfe not in (None, 1):
            raise RecipeError(f"nfe: `{config.name}` makes one evaluation, not {recipe.nfe}", hint="leave nfe out")
        grid = to_times(process, torch.tensor([float(model.header["sigma_init"]), 0.0], dtype=torch.float64))
    else:
        grid = longest(recipe.grid, recipe.nfe, process, solve, own)
    call = denoiser.clean if isinstance(denoiser, LinearDenoiser) else denoiser
    denoise = guided(call, recipe.guidance, recipe.guidance_interval, process)
    if recipe.threshold is not None:
        if is_linear:
            raise RecipeError("threshold: its limits are those of samples, not of a bridge's coordinates")
        denoise = thresholded(denoise, recipe.threshold)
    times = torch.stack(called_at(solve, process, grid, **own))
    nfe = cost(recipe.guidance, recipe.guidance_interval, process, times)
    if isinstance(
        denoiser, LinearDenoiser
    ):  # the calls are those of one noise level, the weights each coordinate's own
        solve = coordinates.solver(config.name, denoiser.process, denoiser.index, grid, **own)
        return Plan(model, denoise, process, solve, {}, grid, wanted, nfe, denoiser)
    return Plan(model, denoise, process, solve, own, grid, wanted, nfe)


def _check_guidance(model: Model) -> None:
    """Raises RecipeError for a model that never learned both denoisers between which guidance extrapolates."""
    if not model.classes:
        raise RecipeError(f"guidance: `{model.name}` is unconditional, there is nothing to guide towards")
    if model.header["kind"] == "generator":
        raise RecipeError(f"guidance: `{model.name}` is a generator, and these are distilled with labels only")
    if model.header.get("label_dropout") == 0:
        raise RecipeError(
            f"guidance: `{model.name}` has always seen its labels", hint="train it with method.label_dropout above 0"
        )


def execute(job: Job) -> Outcome:
    """Draws and writes the samples of a job. Raises GentkError for what the user can mend."""
    recipe = job.recipe
    where = precision.device(job.device)
    if job.dry_run:
        plan = prepare(recipe, where)
        return Outcome(
            "planned", answer=f"{recipe.n} samples of shape {plan.model.shape}, {plan.nfe} NFE each, in {job.out}"
        )
    made_from = inputs.digests({recipe.model: model_path(recipe.model)})
    with ranks.opened(inputs.renewed(job, made_from)) as run:
        if run.done is None:
            run.update(inputs=made_from)
            with listening() as stop:
                stop.anywhere = True  # every batch that is done is on disk
                _work(run, where)
    return run.outcome()


def _work(run: Run, where: torch.device) -> None:
    recipe = run.job.recipe
    plan = prepare(recipe, where)
    parts = run.folder / "parts"
    parts.mkdir(exist_ok=True)  # by whichever process comes first
    # A part counts only for the recipe and the model that made it: a failed run's folder may be taken over by another.
    stamp = {"made": json.dumps([run.info["digest"], run.info["inputs"]], sort_keys=True)}
    every = batches(recipe.first, recipe.n, recipe.batch)
    held: dict[int, dict[str, Tensor]] = {}
    with Progress(recipe.n, 1, quiet=run.job.quiet) as progress:
        for k, (first, count) in enumerate(ranks.own(every), start=1):
            path = parts / f"{first:08d}.safetensors"
            part = kept(path, stamp)
            if part is None:
                begun = time.perf_counter()
                x = plan.draw(recipe.seed, first, count, where)
                took = time.perf_counter() - begun
                part = {"samples": x, "seconds": torch.tensor(took, dtype=torch.float64)}
                replace_tensors(path, part, stamp)
            held[first] = part
            progress.update(min(recipe.n, k * recipe.batch * dist.current().size), {})
    dist.current().wait()
    if not dist.current().first:
        return
    for first, _ in every:
        path = parts / f"{first:08d}.safetensors"
        if first not in held:
            held[first] = ranks.gathered(path, kept(path, stamp))
    samples = torch.cat([held[first]["samples"] for first, _ in every])
    seconds = sum(float(held[first]["seconds"]) for first, _ in every)
    levels = ratio(plan.process, plan.grid).tolist()
    write(run, samples, labels(recipe.first, recipe.n, plan.cycle), {"nfe": plan.nfe, "noise_levels": levels})
    figures = {"n": recipe.n, "nfe": plan.nfe, "ms_per_sample": 1000 * seconds / recipe.n}
    if plan.linear is not None and plan.model.shape == (2,):
        _, way = followed(lambda first, n, trace: plan.draw(recipe.seed, first, n, where, trace), min(recipe.n, 500))
        pictures.save(paths_picture({"paths": way}), run.folder / "samples" / "paths.png")
        figures |= straightness(way)
    run.update(metrics=figures, model=plan.model.name)
    shutil.rmtree(parts)


def kept(path: Any, stamp: dict[str, str]) -> dict[str, Tensor] | None:
    """The batch that an earlier process wrote, if it is whole and was made for this run."""
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() != stamp:
                return None
        return load_file(path)
    except (FileNotFoundError, SafetensorError):
        return None
