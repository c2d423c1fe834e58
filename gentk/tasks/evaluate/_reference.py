"""What an evaluation measures and what it compares with, found by the names in its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gentk.engine.run import read_info
from gentk.errors import MissingAsset, RecipeError
from gentk.recipe.schema import Data
from gentk.recipe.store import model_path
from gentk.tasks.evaluate import _sources
from gentk.tasks.evaluate._sources import Source

_DRAWN = 10_000  # samples of a model, where nothing else is asked for


def samples_of(recipe: Any, where: torch.device, draws: int = 1) -> tuple[Source, dict[str, Path]]:
    """What is measured, `draws` times as many samples as the method's `n` says, and the files behind it."""
    ref, n = recipe.samples, None if recipe.method.n is None else recipe.method.n * draws
    if ref.startswith("data:"):
        name, _, split = ref.removeprefix("data:").rpartition(":")
        if split not in ("train", "test"):
            raise RecipeError(f"samples: `{ref}` names no split", hint=f"{ref}:test or {ref}:train")
        return _sources.of_data(Data(name=name, root=recipe.reference.root if recipe.reference else None), split).first(
            n
        ), {}
    path = Path(ref).expanduser()
    info = read_info(path) if path.is_dir() else None
    if info is not None and info.get("task") == "sample":
        path, info = _sources.located(path), None
    match path.suffix:
        case ".npz":
            return _sources.of_npz(path).first(n), {ref: path}
        case ".safetensors" if path.name == "samples.safetensors":
            return _sources.of_safetensors(path).first(n), {ref: path}
    if path.is_dir() and info is None and not (path / "export").is_dir():
        return _sources.of_folder(path).first(n), {ref: path}
    source = _sources.of_model(ref, where, n=n or _DRAWN * draws, steps=recipe.method.steps, seed=recipe.seed)
    return source, {ref: model_path(ref)}


def images_of(recipe: Any) -> Source:
    """The reference: a split of a data set, or a whole folder (whose split is for training)."""
    folder = folder_of(recipe)
    if folder is None:
        return _sources.of_data(recipe.reference, recipe.split)
    if not folder.is_dir():
        raise MissingAsset(f"reference: no folder {folder}")
    return _sources.of_folder(folder)


def folder_of(recipe: Any) -> Path | None:
    """The folder of the reference's pictures; None for a data set or statistics."""
    name = recipe.reference.name
    if not name.startswith("images:"):
        return None
    return Path(recipe.reference.root or "").expanduser() / Path(name.removeprefix("images:")).expanduser()
