"""The torch side of text-to-image models: prompts embedded, latents drawn by a solver, decoded, written beside them.

A finished run's `prompts.jsonl` has a record for each image, in order: what `gentk evaluate` asks for.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from gentk.data import to_uint8
from gentk.engine import inputs, pictures, precision, ranks
from gentk.engine.draw import batches, draw
from gentk.engine.log import json_text
from gentk.engine.progress import Progress
from gentk.engine.run import Job, Outcome, Run
from gentk.engine.stop import listening
from gentk.errors import RecipeError
from gentk.nets.text.prompts import Prompts
from gentk.processes import latent
from gentk.processes.denoiser import Denoise
from gentk.processes.grids import to_times
from gentk.processes.guidance import cost, guided
from gentk.processes.latent import TextToImage
from gentk.processes.process import ratio
from gentk.recipe import pipelines
from gentk.recipe.prompts import Record, read
from gentk.recipe.registry import method_module
from gentk.recipe.schema import TimeGrid
from gentk.solvers import called_at
from gentk.tasks.sample._drawing import kept, longest, solver
from gentk.tasks.sample._files import replace_tensors

_AT_ONCE = 16 * 512**2  # pixels of one network call, at most: what a recipe for small images asks for would be too much
_IN_GRID, _SHOWN = 36, 128  # images in the picture, and their pixels there


@dataclass(frozen=True)
class _Plan:
    """What is drawn from, by what, on which grid, and what for: the prompt of each image, in order."""

    model: TextToImage
    denoise: Denoise
    solve: Callable[..., Tensor]
    own: dict[str, Any]
    grid: Tensor
    nfe: int
    asked: tuple[Record, ...]

    def told(self, first: int, n: int, where: torch.device) -> Prompts:
        """The prompts of images `first` to `first + n`, from the disk once they were embedded."""
        texts = [self.asked[k % len(self.asked)].text for k in range(first, first + n)]
        return self.model.prompter.encode(texts, where)

    def draw(self, seed: int, first: int, n: int, where: torch.device) -> Tensor:
        """Latents `first` to `first + n` of `seed`, in one batch."""
        return draw(
            self.denoise,
            self.model.denoiser.process,
            self.solve,
            self.grid,
            shape=self.model.shape,
            cycle=lambda first, n: self.told(first, n, where),
            seed=seed,
            first=first,
            n=n,
            where=where,
            **self.own,
        )


def _prepare(recipe: Any, where: torch.device) -> _Plan:
    config, kind = recipe.method, method_module("sample", recipe.method.name).KIND
    if recipe.prompts is None:
        raise RecipeError(
            f"`{recipe.model}` makes images of what it is told: no prompts", hint="--prompt TEXT or --prompts FILE"
        )
    for field in ("labels", "threshold"):
        if getattr(recipe, field) is not None:
            raise RecipeError(f"{field}: means nothing to a text-to-image model", hint="leave it out")
    records = read(recipe.prompts)
    model = latent.load(recipe.model, where=where, section=recipe.latent)
    if model.header["kind"] != kind:
        other = "one-step" if model.header["kind"] == "generator" else "euler"
        raise RecipeError(
            f"`{recipe.model}` is a {model.header['kind']}, `{config.name}` samples a {kind}",
            hint=f"gentk sample {other} --model {recipe.model}",
        )
    process, (solve, own) = model.denoiser.process, solver(config)
    if model.sigma_init is not None:
        if recipe.nfe not in (None, 1):
            raise RecipeError(f"nfe: `{config.name}` makes one evaluation, not {recipe.nfe}", hint="leave nfe out")
        if recipe.guidance != 1:
            raise RecipeError(
                f"guidance: `{recipe.model}` is a generator: it was distilled with its guidance inside",
                hint="leave guidance out, or set it to 1",
            )
        grid = to_times(process, torch.tensor([model.sigma_init, 0.0], dtype=torch.float64))
    else:
        grid = longest(recipe.grid, recipe.nfe, process, solve, own)
    if recipe.prompts.negative:
        model.denoiser.net.set_null(model.prompter.encode([recipe.prompts.negative], where))  # type: ignore[operator]
    times = torch.stack(called_at(solve, process, grid, **own))
    nfe = cost(recipe.guidance, recipe.guidance_interval, process, times)
    asked = tuple(record for record in records for _ in range(recipe.prompts.per_prompt))
    denoise = guided(model.denoiser, recipe.guidance, recipe.guidance_interval, process)
    return _Plan(model, denoise, solve, own, grid, nfe, asked)


def execute(job: Job) -> Outcome:
    """Draws and writes the images of a job. Raises GentkError for what the user can mend."""
    recipe, where = job.recipe, precision.device(job.device)
    if job.dry_run:
        plan = _prepare(recipe, where)
        side = plan.model.pixels
        return Outcome(
            "planned",
            answer=f"{recipe.n} images of {side} x {side} pixels from {len(plan.asked)} prompts, "
            f"{plan.nfe} NFE each, in {job.out}",
        )
    source, own = pipelines.base(recipe.model)
    files = {} if own is None else {recipe.model: own}
    if recipe.prompts is not None and recipe.prompts.file is not None:
        read(recipe.prompts)  # says what is wrong with the file before it is looked at
        files[recipe.prompts.file] = Path(recipe.prompts.file).expanduser()
    place = pipelines.folder(source)
    made_from = inputs.digests(files) | {source: _identity(place)}
    with ranks.opened(inputs.renewed(job, made_from)) as run:
        if run.done is None:
            run.update(inputs=made_from)
            with listening() as stop:
                stop.anywhere = True  # every batch that is done is on disk
                ranks.by_first(lambda: _work(run, where))
    return run.outcome()


def _identity(place: Path) -> str:
    """The revision of a snapshot of the hub, which needs no reading; else the digest of the folder."""
    return place.name if place.parent.name == "snapshots" else inputs.digests({"": place})[""]


def _work(run: Run, where: torch.device) -> None:
    recipe = run.job.recipe
    plan = _prepare(recipe, where)
    model = plan.model
    model.prompter.count([record.text for record in plan.asked])
    _warn(run, plan)
    if recipe.latent.cache:  # all of them first: the encoders are then freed, and no memory holds every embedding
        for k in range(len(plan.asked)):
            plan.told(k, 1, where)
        model.prompter.release()
    parts = run.folder / "parts"
    parts.mkdir(exist_ok=True)
    stamp = {"made": json.dumps([run.info["digest"], run.info["inputs"]], sort_keys=True)}
    seconds, made = 0.0, []
    with Progress(recipe.n, 1, quiet=run.job.quiet) as progress:
        at_once = max(1, min(recipe.batch, _AT_ONCE // model.pixels**2))
        for first, count in batches(recipe.first, recipe.n, at_once):
            path = parts / f"{first:08d}.safetensors"
            part = kept(path, stamp)
            if part is None:
                begun = time.perf_counter()
                z = plan.draw(recipe.seed, first, count, where)
                with torch.no_grad():
                    images = to_uint8(model.codec.decode(z.to(where)).cpu())
                took = torch.tensor(time.perf_counter() - begun, dtype=torch.float64)
                part = {"images": images.contiguous(), "seconds": took}
                replace_tensors(path, part, stamp)
            seconds += float(part["seconds"])
            made.append((path, count))
            progress.update(sum(n for _, n in made), {})
    _write(run, plan, [path for path, _ in made])
    cut = sum(model.prompter.cut.values())
    run.update(
        metrics={
            "n": recipe.n,
            "nfe": plan.nfe,
            "ms_per_sample": 1000 * seconds / recipe.n,
            "prompts": len({record.text for record in plan.asked}),
            "prompts_cut": cut,
        },
        model=model.name,
    )
    shutil.rmtree(parts)


def _warn(run: Run, plan: _Plan) -> None:
    """Says what of the prompts is not seen, and where the times are not those that the model was made for."""
    limits = plan.model.prompter.limits
    asked = len({record.text for record in plan.asked})
    for name, count in plan.model.prompter.cut.items():
        run.warn(f"{name}: {count} of {asked} prompts are longer than its {limits[name]} tokens; the rest is cut off")
    shift, grid = float(plan.model.header.get("shift", 1.0)), run.job.recipe.grid
    if shift != 1 and plan.model.sigma_init is None and isinstance(grid, TimeGrid) and grid.shift != shift:
        run.warn(f"grid.shift: {grid.shift:g}; the model's own scheduler has {shift:g}")


def _write(run: Run, plan: _Plan, parts: list[Path]) -> None:
    """PNGs, and what `save` asks for; the prompt of every image; and samples.json, how they were made."""
    folder, recipe = run.folder, run.job.recipe
    shown: list[Tensor] = []
    rows, k = [], recipe.first
    (folder / "png").mkdir(exist_ok=True)
    for path in parts:
        images = load_file(path)["images"]
        shown += [_small(one) for one in images[: _IN_GRID - len(shown)]]
        for one in images:
            name = f"png/{k:06d}.png"
            Image.fromarray(one.permute(1, 2, 0).numpy()).save(folder / name)
            record = plan.asked[k % len(plan.asked)]
            rows.append({"prompt": record.text, "index": k, "file": name} | dict(record.values))
            k += 1
    if {"npz", "safetensors"} & set(recipe.save):
        samples = torch.cat([load_file(path)["images"] for path in parts])
        if "npz" in recipe.save:
            temporary = folder / ".samples.npz.tmp"
            with temporary.open("wb") as f:
                np.savez(f, samples=samples.numpy())
            temporary.replace(folder / "samples.npz")
        if "safetensors" in recipe.save:
            facts = {"seed": str(recipe.seed), "first": str(recipe.first)}
            replace_tensors(folder / "samples.safetensors", {"samples": samples}, facts)
    if "grid" in recipe.save:
        pictures.save(pictures.grid(torch.stack(shown)), folder / "samples" / "grid.png")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "prompts.jsonl").write_text(lines, encoding="utf-8")
    settings = recipe.model_dump(mode="json")
    made = {name: settings[name] for name in ("model", "seed", "first", "n", "guidance", "guidance_interval", "latent")}
    made |= {"solver": settings["method"], "grid": settings["grid"], "per_prompt": settings["prompts"]["per_prompt"]}
    made |= {"negative": settings["prompts"]["negative"], "prompts_cut": plan.model.prompter.cut}
    made |= {"nfe": plan.nfe, "noise_levels": ratio(plan.model.denoiser.process, plan.grid).tolist()}
    made |= {"inputs": run.info["inputs"], "versions": run.info["versions"]}
    (folder / "samples.json").write_text(json_text(made, indent=1), encoding="utf-8")


def _small(image: Tensor) -> Tensor:
    """An image (3, H, W) no larger than the picture shows it."""
    if max(image.shape[1:]) <= _SHOWN:
        return image
    one = Image.fromarray(image.permute(1, 2, 0).numpy())
    one.thumbnail((_SHOWN, _SHOWN), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(one).copy()).permute(2, 0, 1)
