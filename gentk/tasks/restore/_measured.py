"""What is restored: clean images that are measured here, or a folder of pictures that were measured elsewhere."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentk import data, operators
from gentk.data import folder
from gentk.engine import rng
from gentk.errors import GentkError, RecipeError, RunFailed
from gentk.operators import Operator


@dataclass(frozen=True, eq=False)
class Item:
    """One image: the name of its result, the key of its randomness, what it is made from; clean or measured pixels."""

    name: str
    key: int
    digest: str
    clean: Tensor | None = None
    measured: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Measured:
    """All items, and the files that were left out with the reason."""

    items: list[Item]
    skipped: dict[str, str] = field(default_factory=dict)


def of_recipe(recipe: Any, shape: tuple[int, ...]) -> Measured:
    """The items of a recipe for a model of images of `shape`. RecipeError where nothing fits the model."""
    if recipe.input is not None:
        return _of_folder(recipe, shape)
    split = data.load(recipe.data, recipe.split)
    if split.shape != shape:
        raise RecipeError(
            f"model: `{recipe.model}` makes images of shape {shape}, `{recipe.data.name}` has {split.shape}",
            hint="another --model, or another --data",
        )
    n = len(split) if recipe.n is None else recipe.n
    if n > len(split):
        raise RecipeError(
            f"n: {n} images are asked for, `{recipe.data.name}` has {len(split)} in its {recipe.split} split"
        )
    x, _ = split.batch(torch.arange(n))
    return Measured([Item(f"{k:06d}", k, f"{recipe.data.name} {recipe.split} {k}", clean=x[k]) for k in range(n)])


def operator(recipe: Any, shape: tuple[int, ...], keys: list[int], where: torch.device) -> Operator:
    """The operator for the images of these keys, each with its own mask where masks are drawn."""
    gens = [rng.generator(recipe.seed, "operator", key) for key in keys]
    return operators.build(recipe.operator, shape, gens, where=str(where))


def measured(recipe: Any, op: Operator, items: list[Item], where: torch.device) -> Tensor:
    """y of these items: (B, *measured) on the device, as float32."""
    given = [item.measured for item in items]
    if all(y is not None for y in given):
        return op.seen(torch.stack([y for y in given if y is not None]).to(where))
    x = torch.stack([item.clean for item in items if item.clean is not None]).to(where)
    eps = torch.cat([rng.noise(recipe.seed, item.key, 1, op.measured, purpose="measurement") for item in items])
    return operators.measure(op, x, recipe.sigma, eps.to(where))


def _of_folder(recipe: Any, shape: tuple[int, ...]) -> Measured:
    """The pictures of a folder by their names; what cannot be read or does not fit is left out, with reasons."""
    if operators.drawn(recipe.operator):
        raise RecipeError(
            "--input: which pixels were kept is not known: a random mask is another for every image",
            hint="give the mask: --set operator.mask=FILE",
        )
    root = Path(recipe.input).expanduser()
    if not root.is_dir():
        raise RecipeError(f"--input: {root}: no such folder")
    wanted = operators.build(recipe.operator, shape).measured
    files = folder.pictures(root)
    items: list[Item] = []
    skipped: dict[str, str] = {}
    for path in files:
        inside = path.relative_to(root)
        try:
            items.append(_read(path, inside.with_suffix("").as_posix(), wanted))
        except (RunFailed, RecipeError) as error:
            skipped[inside.as_posix()] = str(error).removeprefix(f"{path}: ")
    names = [item.name for item in items]
    if twice := [name for name in names if names.count(name) > 1]:
        raise RecipeError(f"--input: {root}: two pictures are called {twice[0]}: their results would have one name")
    if not items:
        name, why = next(iter(skipped.items()))
        raise RecipeError(f"--input: {root}: not one picture can be restored by `{recipe.model}`: {name}: {why}")
    return Measured(items, skipped)


def _read(path: Path, name: str, wanted: tuple[int, ...]) -> Item:
    grey = folder.survey([path])
    if grey and wanted[0] == 3:
        raise RecipeError("a grey picture, where colour was measured")
    if not grey and wanted[0] == 1:
        raise RecipeError("a colour picture, where grey was measured")
    pixels = folder.pixels(path, grey)
    if pixels.shape != wanted:
        raise RecipeError(
            f"{pixels.shape[2]} x {pixels.shape[1]} pixels, {wanted[2]} x {wanted[1]} were measured by this operator"
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    key = rng.key("picture", name) >> 1  # of the name: the result does not depend on the folder's other files
    return Item(name, key, digest, measured=torch.from_numpy(pixels.copy()).float() / 127.5 - 1)


def fault(skipped: dict[str, str]) -> GentkError:
    """What a run with pictures left out ends in, when the rest is done."""
    shown = "\n".join(f"  {name}: {why}" for name, why in skipped.items())
    return RunFailed(
        f"{len(skipped)} picture(s) were left out, all others are restored:\n{shown}",
        hint="mend or remove them; the same command goes on from what is done",
    )
