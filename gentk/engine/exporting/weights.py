"""Weights as one safetensors file with gentk's header: a checked copy, or rounded to another data type."""

from __future__ import annotations

import copy
from pathlib import Path

import safetensors.torch
import torch

from gentk.engine.exporting import Source, Written, refuse
from gentk.engine.exporting.program import difference, module
from gentk.errors import RunFailed
from gentk.processes.models import Model, load
from gentk.recipe.stamp import write_header

# Rounding moves a weight by at most half a unit in the last place, and a sample by more, as it passes many of them:
# allowed are 32 such roundings (measured on sim-digits: 8 of float16, 5 of bfloat16, the largest of 64 samples).
TOLERANCES = {"float32": 0.0, "float16": 32 * 2.0**-11, "bfloat16": 32 * 2.0**-8}


def write(source: Source, place: Path) -> Written:
    """Writes the file `place`, loads it and compares: every weight exactly, then samples."""
    cpu, kinds = torch.device("cpu"), ("denoiser", "generator")
    model = load(str(source.path), kinds=kinds, where=cpu)
    if source.dtype is None:
        place.write_bytes(source.path.read_bytes())
        header = source.own_header
    else:
        header = source.own_header | {"dtype": source.dtype}
        place.write_bytes(safetensors.torch.save(_rounded(source), write_header(header)))
    again = load(str(place), kinds=kinds, where=cpu)
    if {name: again.header.get(name) for name in header} != header or not _same(source, model, again):
        raise RunFailed(f"`{source.ref}`: read again, the copy is another", hint="try again, or on another disk")
    return Written(difference(model, module(again), module(model)), TOLERANCES[source.dtype or "float32"])


def _rounded(source: Source) -> dict[str, torch.Tensor]:
    """The weights in the data type asked for. RecipeError where one is beyond its range."""
    dtype = getattr(torch, str(source.dtype))
    made = {}
    for name, weight in safetensors.torch.load_file(source.path).items():
        made[name] = weight.to(dtype) if weight.is_floating_point() else weight
        if weight.isfinite().all() and not made[name].isfinite().all():
            largest = float(weight.abs().max())
            raise refuse(source, str(source.dtype), f"{name} reaches {largest:g}", works=("--dtype bfloat16",))
    return made


def _same(source: Source, model: Model, again: Model) -> bool:
    """Whether the weights read again are those of the model, rounded."""
    rounded = copy.deepcopy(model.net)
    if source.dtype is not None:
        rounded.to(getattr(torch, source.dtype)).float()
    wanted = rounded.state_dict()
    found = again.net.state_dict()
    return wanted.keys() == found.keys() and all(torch.equal(found[k], v) for k, v in wanted.items())
