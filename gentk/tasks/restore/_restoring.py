"""The torch side of the restorers: a prior, batches that survive a stop, files by name, figures and panels."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor

from gentk import operators
from gentk.data import to_uint8
from gentk.engine import dist, inputs, pictures, precision, ranks, rng
from gentk.engine.log import json_text
from gentk.engine.progress import Progress
from gentk.engine.run import Job, Outcome, Run
from gentk.engine.stop import listening
from gentk.errors import RecipeError
from gentk.metrics import posterior
from gentk.metrics.paired import psnr, ssim
from gentk.operators.identifiability import report as identifiability
from gentk.processes.denoiser import Denoiser, at_sigma
from gentk.processes.energies import load_denoiser
from gentk.processes.grids import build
from gentk.processes.models import Model, fast_layout, load
from gentk.processes.process import ratio
from gentk.recipe.registry import method_module
from gentk.recipe.stamp import versions
from gentk.recipe.store import model_path
from gentk.restoring import flow
from gentk.tasks.restore import _measured
from gentk.tasks.restore._measured import Item, Measured

_SHOWN = 16  # images in the panels
_WILD = 2.0  # images lie in [-1, 1]: a result beyond it has diverged
_SMALLEST = 11  # side from which SSIM's window fits


@dataclass(frozen=True, eq=False)
class Plan:
    """The prior, its noise levels, and the restorer with its settings."""

    model: Model
    levels: tuple[float, ...]
    restore: Callable[..., Tensor]
    own: dict[str, Any]
    kind: str

    def denoise(self, x: Tensor, s: float) -> Tensor:
        """E[x0] of x = x0 + s eps, without a label."""
        assert isinstance(self.model.net, Denoiser)
        return at_sigma(self.model.net, x, torch.tensor(s, dtype=torch.float64))


def prepare(recipe: Any, where: torch.device) -> Plan:
    """Loads what a recipe needs. RecipeError for parts that do not go together, before anything is run."""
    config = recipe.method
    if config.name == "flow":
        return _amortised(recipe, where)
    module = importlib.import_module(f"gentk.restoring.{config.name.replace('-', '_')}")
    if recipe.draws > 1 and module.POSTERIOR == "point":
        raise RecipeError(
            f"draws: `{config.name}` is point restoration: the spread of its results is no uncertainty",
            hint="draws: 1; or gentk restore pigdm, whose draws are a posterior's",
        )
    needs_noise = getattr(method_module("restore", config.name), "needs_noise", None)
    if recipe.sigma == 0 and needs_noise is not None and needs_noise(config):
        raise RecipeError(
            f"sigma: 0: `{config.name}` with these settings needs noise",
            hint="--sigma 0.01, 1.3 bytes; pigdm: or covariance: false",
        )
    model = load_denoiser(recipe.model, where=where)
    net = model.net
    assert isinstance(net, Denoiser)
    if len(model.shape) != 3:
        raise RecipeError(f"model: `{recipe.model}` makes samples of shape {model.shape}, restored are images")
    if model.classes and model.header.get("label_dropout", 1.0) == 0:
        raise RecipeError(
            f"model: `{recipe.model}` has always seen its labels, which nobody knows of what was measured",
            hint="train it with method.label_dropout above 0, or take an unconditional model",
        )
    fast_layout(net)
    levels = ratio(net.process, build(recipe.grid, recipe.steps, net.process)).tolist()
    if levels[-1] != 0 or math.isinf(levels[0]):
        raise RecipeError("grid: restoring starts at a finite noise level and ends at 0")
    own = config.model_dump(exclude={"name"})
    op = _measured.operator(recipe, model.shape, [0, 1], where)
    if hasattr(module, "levels_of"):
        levels = module.levels_of(op, recipe.sigma, levels)
    plan = Plan(model, tuple(levels), module.restore, own, module.POSTERIOR)
    if config.name != "dps" and not getattr(config, "covariance", False):
        op.spectral(torch.zeros(2, *model.shape, device=where), torch.ones_like)  # says what has no singular values
    return plan


def _amortised(recipe: Any, where: torch.device) -> Plan:
    """A trained flow, which knows one operator and one sigma."""
    model = load(recipe.model, kinds=("restorer",), where=where)
    header = model.header
    learned = {"operator": header["operator"], "sigma": header["sigma"]}
    asked = {"operator": json.loads(recipe.operator.model_dump_json()), "sigma": recipe.sigma}
    for key, value in asked.items():
        if value != learned[key]:
            raise RecipeError(
                f"{key}: `{recipe.model}` has learned to undo {learned[key]}, not {value}",
                hint="gentk restore flowdiff learns another; or restore by dps or pigdm with its prior",
            )
    if len(model.shape) != 3:
        raise RecipeError(f"model: `{recipe.model}` makes samples of shape {model.shape}, restored are images")
    mean = torch.tensor(header["mean"], device=where).reshape(model.shape)
    r = header["r"]
    r = torch.tensor(r, device=where).reshape(model.shape) if isinstance(r, list) else r  # each pixel's own, or one
    return Plan(model, (1.0, 0.0), flow.Amortised(model.net, mean, r).restore, {}, flow.POSTERIOR)


def execute(job: Job) -> Outcome:
    """Restores and writes what was restored. RunFailed in the end where a picture had to be left out."""
    recipe, where = job.recipe, precision.device(job.device)
    if job.dry_run:
        plan = prepare(recipe, where)
        found = _measured.of_recipe(recipe, plan.model.shape)
        return Outcome(
            "planned",
            answer=f"{len(found.items)} images, {recipe.draws} draw(s) of {len(plan.levels) - 1} evaluations each, by "
            f"{recipe.method.name} ({plan.kind}); in {job.out}"
            + "".join(f"\nleft out: {k}: {v}" for k, v in found.skipped.items()),
        )
    files = {recipe.model: model_path(recipe.model)}
    if recipe.input is not None and Path(recipe.input).expanduser().is_dir():
        files[recipe.input] = Path(recipe.input).expanduser()
    digests = inputs.digests(files)
    run: Run | None = None
    try:
        with ranks.opened(inputs.renewed(job, digests)) as run:
            if run.done is None:
                run.update(inputs=digests)
                with listening() as stop:
                    stop.anywhere = True  # every image that is done is on disk
                    _work(run, where)
    finally:
        if run is not None and run.info:
            ranks.reported(run)
    outcome, answer = run.outcome(), ranks.said(run, "answer.txt")
    return Outcome(outcome.status, outcome.metrics, outcome.run, outcome.seconds, answer=answer)


def _work(run: Run, where: torch.device) -> None:
    recipe = run.job.recipe
    plan = prepare(recipe, where)
    found = _measured.of_recipe(recipe, plan.model.shape)
    for name, why in found.skipped.items():
        run.warn(f"left out: {name}: {why}")
    parts = run.folder / "parts"
    parts.mkdir(exist_ok=True)
    made = json.dumps([run.info["digest"], run.info["inputs"][recipe.model]])
    rows = max(1, recipe.batch // recipe.draws)
    done: list[dict[str, Tensor]] = []
    _made_by_all(plan, found, parts, made, rows, where, recipe)
    if not dist.current().first:
        return
    with Progress(len(found.items), 1, label="images", quiet=run.job.quiet) as progress:
        for start in range(0, len(found.items), rows):
            some = found.items[start : start + rows]
            kept = [_kept(parts / f"{item.key}.safetensors", f"{made} {item.digest}") for item in some]
            todo = [item for item, part in zip(some, kept, strict=True) if part is None]
            fresh = iter(_restored(plan, recipe, todo, where) if todo else ())
            for item, part in zip(some, kept, strict=True):
                if part is None:
                    part = next(fresh)
                    _replace(parts / f"{item.key}.safetensors", to_bytes(part, {"made": f"{made} {item.digest}"}))
                _files(run.folder, item, part)
                done.append(part)
                progress.update(len(done))
    _write(run, plan, found, {key: torch.stack([part[key] for part in done]) for key in done[0]})
    if found.skipped:
        raise _measured.fault(found.skipped)  # the parts stay: when the pictures are mended, only these are left to do
    shutil.rmtree(parts)


def _made_by_all(
    plan: Plan, found: Measured, parts: Path, made: str, rows: int, where: torch.device, recipe: Any
) -> None:
    """Of several processes: each restores its share of the batches into `parts`, and waits for the others."""
    group = dist.current()
    if group.size == 1:
        return
    for start in ranks.own(range(0, len(found.items), rows)):
        some = found.items[start : start + rows]
        todo = [e for e in some if _kept(parts / f"{e.key}.safetensors", f"{made} {e.digest}") is None]
        for item, part in zip(todo, _restored(plan, recipe, todo, where) if todo else (), strict=True):
            _replace(parts / f"{item.key}.safetensors", to_bytes(part, {"made": f"{made} {item.digest}"}))
    group.wait()


def _restored(plan: Plan, recipe: Any, items: list[Item], where: torch.device) -> list[dict[str, Tensor]]:
    """The results of some images in one batch, each with its draws: tensors on the CPU, by name."""
    shape, k = plan.model.shape, recipe.draws
    keys = [item.key for item in items]
    op = _measured.operator(recipe, shape, keys, where)
    y = _measured.measured(recipe, op, items, where)
    many = _measured.operator(recipe, shape, [key for key in keys for _ in range(k)], where)
    seeds = [rng.key(recipe.seed, "draw", key, j) for key in keys for j in range(k)]
    sources = [rng.generator(seed, "noise") for seed in seeds]

    def noise(x: Tensor) -> Tensor:
        return torch.stack([torch.randn(x.shape[1:], generator=gen) for gen in sources]).to(x)

    x = plan.levels[0] * torch.stack([torch.randn(shape, generator=gen) for gen in sources]).to(where)
    begun = time.perf_counter()
    wide = y.repeat_interleave(k, 0)
    out = plan.restore(plan.denoise, many, wide, recipe.sigma, x, plan.levels, noise, **plan.own).detach()
    seconds = (time.perf_counter() - begun) / len(items)
    if not bool(torch.isfinite(out).all()):
        raise RecipeError(
            f"`{recipe.method.name}` has diverged: its results are not finite", hint="a smaller step, or more steps"
        )
    misfit = (wide - many(out)).square().flatten(1).sum(1) / many.seen(torch.ones_like(wide)).flatten(1).sum(1)
    view = operators.shown(op, y).cpu()
    found = []
    for i, item in enumerate(items):
        own = out[i * k : (i + 1) * k]
        part = {
            "draws": own.float().cpu(),
            "view": view[i].float(),
            "misfit": misfit[i * k : (i + 1) * k].mean().sqrt().float().cpu(),
            "seconds": torch.tensor(seconds, dtype=torch.float64),
        }
        found.append(part if item.clean is None else part | {"clean": item.clean})
    return [{name: value.contiguous().clone() for name, value in part.items()} for part in found]


def _files(folder: Path, item: Item, part: dict[str, Tensor]) -> None:
    """restored/NAME.png, the mean of the draws; with several draws also std/NAME.png, 255 for a deviation of 1."""
    mean, std = posterior.mean_and_std(part["draws"][None])
    _png(folder / "restored" / f"{item.name}.png", to_uint8(mean)[0])
    if len(part["draws"]) > 1:
        _png(folder / "std" / f"{item.name}.png", (std[0] * 255).round().clamp(0, 255).to(torch.uint8))


def _png(path: Path, pixels: Tensor) -> None:
    image = pixels.permute(1, 2, 0).numpy()
    pictures.save(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), path)


def _figures(plan: Plan, recipe: Any, found: Measured, all_of: dict[str, Tensor]) -> dict[str, float]:
    draws, k = all_of["draws"], recipe.draws
    calls = plan.own["solves"] + 1 if plan.own.get("covariance") else 1 if recipe.method.name in ("dps", "pigdm") else 0
    figures = {
        "images": float(len(draws)),
        "left_out": float(len(found.skipped)),
        "nfe": float(len(plan.levels) - 1),
        "backward_passes": float((len(plan.levels) - 1) * calls),
        "seconds_per_image": float(all_of["seconds"].mean()),
        "wild": float((draws.abs().flatten(2).amax(2) > _WILD).double().mean()),
        "misfit": float(all_of["misfit"].square().mean().sqrt()),
    }
    if recipe.sigma:
        figures["misfit_over_sigma"] = figures["misfit"] / recipe.sigma
    if "clean" not in all_of:
        return figures
    truth = all_of["clean"].clamp(-1, 1)
    mean, std = posterior.mean_and_std(draws)
    sets = {"": mean, "_measured": all_of["view"]} | ({"_one_draw": draws[:, 0]} if k > 1 else {})
    for name, images in sets.items():
        figures[f"psnr{name}"] = float(psnr(images.clamp(-1, 1), truth, data_range=2).mean())
        if min(truth.shape[2:]) >= _SMALLEST:
            figures[f"ssim{name}"] = float(ssim(images.clamp(-1, 1), truth, data_range=2).mean())
    if k > 1:
        figures |= {"coverage_90": posterior.coverage(truth, draws), "std": float(std.mean())}
        if k > 3 and not math.isnan(z := posterior.z_rms(truth, draws)):
            figures["z_rms"] = z
    return figures


def _write(run: Run, plan: Plan, found: Measured, all_of: dict[str, Tensor]) -> None:
    recipe = run.job.recipe
    figures = _figures(plan, recipe, found, all_of)
    few = {name: value[:_SHOWN] for name, value in all_of.items()}
    mean, std = posterior.mean_and_std(few["draws"])
    panels = {"truth": few["clean"]} if "clean" in few else {}
    panels |= {"measured": few["view"], "restored" if recipe.draws == 1 else "mean of draws": mean}
    shown = {name: to_uint8(x) for name, x in panels.items()}
    if recipe.draws > 1:
        shown |= {
            "one draw": to_uint8(few["draws"][:, 0]),
            "deviation": (255 * std).round().clamp(0, 255).to(torch.uint8),
        }
    pictures.save(pictures.side_by_side(shown), run.folder / "samples" / "panels.png")
    said = _remarks(plan, recipe, found, figures["wild"])
    result = {
        "figures": figures,
        "restorer": recipe.method.model_dump(mode="json") | {"draws_are": plan.kind},
        "operator": recipe.operator.model_dump(mode="json") | {"sigma": recipe.sigma},
        "images": [item.name for item in found.items],
        "left_out": found.skipped,
        "levels": plan.levels,
        "inputs": run.info["inputs"],
        "seed": recipe.seed,
        "versions": versions(),
    }
    (run.folder / "result.json").write_text(json_text(result, indent=1), encoding="utf-8")
    words = [f"{len(found.items)} images in {run.folder / 'restored'}", *(f"- {each['words']}" for each in said)]
    (run.folder / "answer.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    run.update(metrics=figures, remarks=said)


def _remarks(plan: Plan, recipe: Any, found: Measured, wild: float) -> list[dict[str, str]]:
    """What must be known to read the figures."""
    said = []
    if plan.kind == "point":
        said.append("Point restoration: one estimate, which fits the noise too. It says nothing of uncertainty.")
    elif plan.kind == "exact":
        said.append("Draws of the model's own posterior, exact but for the size of the steps.")
    elif plan.own.get("covariance"):
        said.append("Draws of the posterior, exact where the data given their noised versions are Gaussian.")
    else:
        said.append("Draws are approximate: their spread is the method's, not proven to be the posterior's.")
    if not operators.drawn(recipe.operator):
        seen = identifiability(lambda _: _measured.operator(recipe, plan.model.shape, [0], torch.device("cpu")), 1)
        if (unseen := max(seen.never, seen.zero)) > 0:
            said.append(
                f"Of the image's directions {100 * unseen:.3g} % are not measured: there it is the model's own."
            )
    notes = [{"kind": "note", "words": words} for words in said]
    if wild:
        words = f"{100 * wild:.3g} % of the results leave [-{_WILD:g}, {_WILD:g}]: they have diverged. Take more steps."
        notes.append({"kind": "flag", "words": words})
    for name, why in found.skipped.items():
        notes.append({"kind": "flag", "words": f"Left out: {name}: {why}."})
    return notes


def _kept(path: Path, made: str) -> dict[str, Tensor] | None:
    """The result that an earlier process wrote, if it is whole and was made by this recipe, model and picture."""
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() != {"made": made}:
                return None
        return load_file(path)
    except (FileNotFoundError, SafetensorError):
        return None


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
