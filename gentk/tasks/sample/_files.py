"""The files that `sample` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save as to_bytes
from torch import Tensor

from gentk.data import to_uint8
from gentk.engine import pictures
from gentk.engine.generative import picture
from gentk.engine.log import json_text
from gentk.engine.run import Run

_IN_GRID = 400  # samples in the picture, at most


def replace_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a safetensors file, whole or not at all; a full disk is an OSError (safetensors' own writer hides it)."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(to_bytes(tensors, metadata))
    temporary.replace(path)


def write(run: Run, samples: Tensor, labels: Tensor | None, facts: dict[str, Any]) -> None:
    """What `save` asks for, images as bytes by EDM's rule, points as they are; and samples.json, how they were made."""
    folder, recipe = run.folder, run.job.recipe
    image = samples.dim() == 4
    values = to_uint8(samples) if image else samples
    tensors = {"samples": values.contiguous()} | ({} if labels is None else {"labels": labels})
    if "npz" in recipe.save:
        temporary = folder / ".samples.npz.tmp"
        with temporary.open("wb") as f:
            np.savez(f, **{k: v.numpy() for k, v in tensors.items()})  # type: ignore[arg-type]
        temporary.replace(folder / "samples.npz")
    if "safetensors" in recipe.save:
        replace_tensors(folder / "samples.safetensors", tensors, {"seed": str(recipe.seed), "first": str(recipe.first)})
    if "grid" in recipe.save and (image or samples.shape[1] == 2):
        pictures.save(picture({"samples": samples[:_IN_GRID]}), folder / "samples" / "grid.png")
    if "png" in recipe.save:
        (folder / "png").mkdir(exist_ok=True)
        for k, one in enumerate(values.permute(0, 2, 3, 1).numpy(), start=recipe.first):
            Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one).save(folder / "png" / f"{k:06d}.png")
    keys = ("model", "seed", "first", "n", "labels", "guidance", "guidance_interval", "batch")
    settings = recipe.model_dump(mode="json")
    made = {k: settings[k] for k in keys} | {"solver": settings["method"], "grid": settings["grid"]}
    made |= {"inputs": run.info["inputs"], "versions": run.info["versions"]} | facts
    (folder / "samples.json").write_text(json_text(made, indent=1), encoding="utf-8")
