"""Text-to-image models as what they are in diffusers: the pipeline that they were made from, with their network in it.

No code of ours is in the folder. A one-step generator of a `discrete` process is a stock pipeline too, by a scheduler
that has it step once: Euler's on EDM's grid, whose first level is `sigma_max`, here the generator's own, and whose step
from there to 0 ends on the network's x0. A flow's scheduler has one beginning, pure noise.

    pipe = DiffusionPipeline.from_pretrained("FOLDER")
    pipe("a prompt", num_inference_steps=1, guidance_scale=0.0).images
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gentk.engine.draw import starts
from gentk.engine.exporting import FOLDER_MARK, Source, Written, refuse
from gentk.nets import text
from gentk.nets.text.prompts import Prompts
from gentk.processes import latent
from gentk.processes.latent import TextToImage
from gentk.processes.process import ratio
from gentk.processes.schedules import Discrete, RectifiedFlow
from gentk.recipe import pipelines

# Of x0 over max(1, sigma): diffusers' betas are float32 (see `ddpm_pipeline`), which moves the label of a noise level.
TOLERANCE = 1e-4

_TARGETS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")
_ASKED = ("", "a red cube on a blue ball")
_CALLED = {"num_inference_steps": 1, "guidance_scale": 0.0}


def write(source: Source, place: Path) -> Written:
    """Writes the folder `place`, has diffusers load it, and compares: a generator's samples, or a denoiser's weights.

    Raises RecipeError for a flow's generator that does not begin at pure noise, MissingAsset without diffusers or where
    the pipeline that the model was made from is not here.
    """
    diffusers = text.diffusers()
    model = latent.load(str(source.path), where=torch.device("cpu"))
    flow, once = isinstance(model.denoiser.process, RectifiedFlow), model.sigma_init
    if flow and once is not None and math.isfinite(once):
        raise refuse(
            source,
            "diffusers",
            f"it is called at noise level {once:g}, and pipelines of flows there begin at pure noise",
            works=("gentk sample one-step", "a generator distilled with method.sigma_init: .inf"),
        )
    network = pipelines.NETWORK[pipelines.family_of(model.folder)]
    index = pipelines.read_json(model.folder / pipelines.INDEX)
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0] and name not in _UNUSED]
    for name in parts:
        if name != network:
            shutil.copytree(model.folder / name, place / name, ignore=_copies)
    core: Any = model.denoiser.net.core
    core.save_pretrained(place / network)
    index |= {name: [None, None] for name in _UNUSED if name in index}
    index |= {"requires_safety_checker": False} if "safety_checker" in index else {}
    if model.sigma_init is not None and isinstance(model.denoiser.process, Discrete):
        index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
        _scheduler(diffusers, model).save_pretrained(place / "scheduler")
    (place / pipelines.INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
    mark = source.own_header | ({"call": _CALLED} if model.sigma_init is not None else {})
    (place / FOLDER_MARK).write_text(json.dumps(mark, indent=2, sort_keys=True) + "\n", "utf-8")
    if model.sigma_init is None:
        return Written(_weights_apart(core, latent.load(str(place), where=torch.device("cpu"))), 0.0)
    return Written(_samples_apart(diffusers, model, place), TOLERANCE)


def _copies(folder: str, names: list[str]) -> list[str]:
    """What is not needed of a part: pickles, and weights of another precision beside the whole ones."""
    whole = any(name.endswith(".safetensors") and ".fp16" not in name and ".non_ema" not in name for name in names)
    return [n for n in names if n.endswith((".bin", ".msgpack")) or (whole and (".fp16" in n or ".non_ema" in n))]


def _scheduler(diffusers: Any, model: TextToImage) -> Any:
    process = model.denoiser.process
    assert isinstance(process, Discrete)
    schedule = {"linear": "linear", "scaled-linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
    return diffusers.EulerDiscreteScheduler(
        num_train_timesteps=process.steps,
        beta_start=process.beta_start,
        beta_end=process.beta_end,
        beta_schedule=schedule[process.schedule],
        prediction_type=_TARGETS[model.denoiser.predicts],
        use_karras_sigmas=True,
        sigma_max=model.sigma_init,
        sigma_min=float(ratio(process, torch.tensor(process.t_min, dtype=torch.float64))),
        timestep_spacing="trailing",
        steps_offset=1,  # unused by this spacing; Stable Diffusion's pipeline insists on it
    )


def _weights_apart(core: Any, again: TextToImage) -> float:
    found = again.denoiser.net.core.state_dict()  # type: ignore[union-attr]
    return max(float((found[name] - x).abs().max()) for name, x in core.state_dict().items())


@torch.no_grad()
def _samples_apart(diffusers: Any, model: TextToImage, place: Path) -> float:
    """The largest difference of the pipeline's latents from the generator's, over max(1, sigma), of the same noise."""
    once = model.sigma_init
    assert once is not None
    process = model.denoiser.process
    z, prompts = starts(0, 0, len(_ASKED), model.shape), model.prompter.encode(_ASKED)
    t = process.t_of(torch.tensor(once, dtype=torch.float64)).clamp(max=process.t_max)
    ours = model.denoiser(float(process.sigma(t)) * z, t, prompts)
    index = pipelines.read_json(place / pipelines.INDEX)
    absent = {name: None for name in index if name.startswith(("text_encoder", "tokenizer"))}  # prompts are embedded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecations and of optional packages
        pipe = diffusers.DiffusionPipeline.from_pretrained(place, local_files_only=True, **absent)
        pipe.set_progress_bar_config(disable=True)
        theirs: Tensor = pipe(**_told(model, prompts), latents=z, output_type="latent", **_CALLED).images
    return float((ours - theirs).abs().max()) / max(1.0, once if math.isfinite(once) else 1.0)


def _told(model: TextToImage, prompts: Prompts) -> dict[str, Any]:
    words: dict[str, Any] = {"prompt_embeds": prompts.embeds, "height": model.pixels, "width": model.pixels}
    if prompts.mask is not None:
        words |= {"prompt_attention_mask": prompts.mask, "negative_prompt": None, "use_resolution_binning": False}
    if prompts.pooled is not None:
        words |= {"pooled_prompt_embeds": prompts.pooled}
    return words
