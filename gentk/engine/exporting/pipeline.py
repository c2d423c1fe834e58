"""Folders for diffusers' `DiffusionPipeline.from_pretrained`.

A one-step generator has no pipeline in diffusers, so its folder brings the code along: two short files that diffusers
runs when it is told `trust_remote_code=True`, and not otherwise; nothing is fetched. The network itself is the program
of `program`. A denoiser becomes what diffusers has of its own, where that exists (`ddpm_pipeline`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from gentk.engine.exporting import FOLDER_MARK, Source, Written, ddpm_pipeline, program, refuse
from gentk.errors import RunFailed
from gentk.processes.models import load
from gentk.recipe import extras

TOLERANCE = program.TOLERANCE

_CODE = {"gentk_one_step.py": ".", "gentk_program.py": "generator"}
_IMAGES = (1, 3)  # channels that diffusers can make pictures of

# Run by another Python, which has never seen gentk, with a cache of its own for the code that diffusers copies.
_CHECK = """\
import sys, warnings
warnings.simplefilter("ignore")
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
folder, *pairs = sys.argv[1:]
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
for given, made in zip(pairs[::2], pairs[1::2], strict=True):
    inputs = load_file(given)
    call = {"latents": inputs["z"], "class_labels": inputs.get("labels"), "output_type": "latent"}
    save_file({"images": pipe(len(inputs["z"]), **call).images}, made)
assert "gentk" not in sys.modules
"""


def write(source: Source, place: Path) -> Written:
    """Writes the folder `place`, has diffusers load it in a process of its own, and compares.

    RecipeError for a model that has no such form, MissingAsset without diffusers.
    """
    shape = source.header["data"]["shape"]
    if source.header["kind"] != "generator":
        return ddpm_pipeline.write(source, place)
    if len(shape) != 3 or shape[0] not in _IMAGES:
        raise refuse(source, "diffusers", f"its samples have shape {tuple(shape)}, pipelines there make images")
    diffusers = extras.load("diffusers", "t2i")
    (place / "generator").mkdir(parents=True)
    for name, folder in _CODE.items():
        shutil.copyfile(Path(__file__).parent / name, place / folder / name)
    index = {
        "_class_name": ["gentk_one_step", "OneStepPipeline"],
        "_diffusers_version": diffusers.__version__,
        "generator": ["gentk_program", "GentkProgram"],
        "shape": shape,
        "classes": source.header["data"]["classes"],
    }
    (place / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    (place / FOLDER_MARK).write_text(json.dumps(source.own_header, indent=2, sort_keys=True) + "\n", "utf-8")
    program.write(source, place / "generator" / "program.pt2")
    model = load(str(source.path), kinds=("generator",), where=torch.device("cpu"))
    names, _ = program.names(model)
    made = iter(_elsewhere(place, [dict(zip(names, each, strict=True)) for each in program.trials(model)]))
    return Written(program.difference(model, lambda *_: next(made)), TOLERANCE)


def _elsewhere(folder: Path, inputs: list[dict[str, Tensor]]) -> list[Tensor]:
    """What the pipeline in `folder` makes of each of the inputs. Raises RunFailed where it cannot be loaded."""
    with tempfile.TemporaryDirectory() as scratch:
        pairs = [(Path(scratch, f"given-{k}"), Path(scratch, f"made-{k}")) for k in range(len(inputs))]
        for (given, _), tensors in zip(pairs, inputs, strict=True):
            safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, given)
        own = {"HF_MODULES_CACHE": str(Path(scratch, "modules")), "HF_HUB_OFFLINE": "1"}
        own["OMP_NUM_THREADS"] = str(torch.get_num_threads())
        words = [sys.executable, "-c", _CHECK, str(folder.resolve()), *(str(path) for pair in pairs for path in pair)]
        done = subprocess.run(words, env=os.environ | own, cwd=scratch, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
            raise RunFailed(f"diffusers cannot load what was written: {last[0]}", hint="report this")
        return [safetensors.torch.load_file(made)["images"] for _, made in pairs]
