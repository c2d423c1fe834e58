"""Denoisers by `ddpm-unet` as what they are in diffusers: a UNet2DModel and a DDPMScheduler, without code of ours.

Timestep k of diffusers is time k + 1 of our `discrete` process, whose betas are the scheduler's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from gentk.engine.draw import starts
from gentk.engine.exporting import FOLDER_MARK, Source, Written, refuse
from gentk.processes.denoiser import Denoiser, at_sigma
from gentk.processes.models import Model, load
from gentk.processes.process import expand, ratio
from gentk.processes.schedules import Discrete
from gentk.recipe import extras, schema

# diffusers multiplies its betas in float32: 1000 roundings of 2^-24 move abar, and with it x0, by up to 6e-5 of itself
TOLERANCE = 1e-4

_PREDICTS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
_INPUTS = schema.Inputs(scale="process", label="time", factor=1.0, offset=-1.0)
_STEPS = (0.0, 1 / 3, 2 / 3, 1.0)  # of the timesteps, where the two are compared


def write(source: Source, place: Path) -> Written:
    """Writes the folder `place`, has diffusers load its parts, and compares x0 at four timesteps over max(1, sigma).

    RecipeError for a denoiser that has no such form, MissingAsset without diffusers.
    """
    model = load(str(source.path), kinds=("denoiser",), where=torch.device("cpu"))
    if why := _misfit(model):
        raise refuse(source, "diffusers", why)
    diffusers = extras.load("diffusers", "t2i")
    version = {"_diffusers_version": diffusers.__version__}
    index = {
        "_class_name": "DDPMPipeline",
        **version,
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    }
    assert isinstance(model.net, Denoiser)
    weights = {k: v.contiguous() for k, v in model.net.net.state_dict().items()}
    for folder in ("unet", "scheduler"):
        (place / folder).mkdir(parents=True)
    safe = safetensors.torch.save(weights, {"format": "pt"})
    (place / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(safe)
    for name, content in {
        "model_index.json": index,
        "unet/config.json": version | _unet(model),
        "scheduler/scheduler_config.json": version | _scheduler(model),
        FOLDER_MARK: source.own_header,
    }.items():
        (place / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    return Written(_difference(diffusers, model, place), TOLERANCE)


def _misfit(model: Model) -> str:
    """Why the denoiser is not one of diffusers' form; empty where it is."""
    denoiser, net = model.net, model.header["net"]
    assert isinstance(denoiser, Denoiser)
    if net["name"] != "ddpm-unet":
        return f"a denoiser by `{net['name']}` has no network and scheduler there"
    if not isinstance(denoiser.process, Discrete) or denoiser.process.data_scale != 1 or denoiser.inputs != _INPUTS:
        return "its network does not take timesteps of a discrete process"
    if denoiser.predicts not in _PREDICTS:
        return f"no scheduler there reads what it predicts, `{denoiser.predicts}`"
    section = schema.DdpmUNet.model_validate_json(json.dumps(net))
    if section.multipliers[0] != 1:
        return "a UNet2DModel embeds time in as many numbers as its first level has channels, this one does not"
    return ""


def _unet(model: Model) -> dict[str, Any]:
    """The configuration of the UNet2DModel whose tensors have the same names."""
    section = schema.DdpmUNet.model_validate_json(json.dumps(model.header["net"]))
    channels, size = model.shape[:2]
    attends = [size >> level in section.attention for level in range(len(section.multipliers))]
    return {
        "_class_name": "UNet2DModel",
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": [m * section.width for m in section.multipliers],
        "layers_per_block": section.blocks,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        "attention_head_dim": section.head_width,
        "norm_num_groups": section.groups,
        "norm_eps": 1e-6,
        "dropout": section.dropout,
        "downsample_padding": 0,
        "time_embedding_type": "positional",
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "act_fn": "silu",
        "center_input_sample": False,
    }


def _scheduler(model: Model) -> dict[str, Any]:
    """The process; clipping to the data's range and the larger variance are Ho et al.'s own choices for sampling."""
    denoiser = model.net
    assert isinstance(denoiser, Denoiser)
    assert isinstance(denoiser.process, Discrete)
    process = denoiser.process
    return {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": process.steps,
        "beta_schedule": "squaredcos_cap_v2" if process.schedule == "cosine" else process.schedule.replace("-", "_"),
        "beta_start": process.beta_start,
        "beta_end": process.beta_end,
        "prediction_type": _PREDICTS[denoiser.predicts],
        "clip_sample": True,
        "variance_type": "fixed_large",
    }


@torch.no_grad()
def _difference(diffusers: Any, model: Model, place: Path) -> float:
    """The largest difference of x0 by diffusers' network and scheduler from ours, over max(1, sigma)."""
    denoiser = model.net
    assert isinstance(denoiser, Denoiser)
    assert isinstance(denoiser.process, Discrete)
    process = denoiser.process
    # what it would warn of otherwise: the package `accelerate`, which saves memory while loading
    unet = diffusers.UNet2DModel.from_pretrained(place / "unet", low_cpu_mem_usage=False).eval()
    scheduler = diffusers.DDPMScheduler.from_pretrained(place / "scheduler", clip_sample=False)  # clipped, all is equal
    z = starts(0, 0, len(_STEPS), model.shape)
    worst: list[Tensor] = []
    for row, part in enumerate(_STEPS):
        k = round(part * (process.steps - 1))
        t = torch.tensor(k + 1.0, dtype=torch.float64)
        sigma = ratio(process, t)
        x_hat = z[row : row + 1] * sigma.float()
        x = expand(process.alpha(t), x_hat) * x_hat
        found = scheduler.step(unet(x, k).sample, k, x).pred_original_sample
        wanted = at_sigma(denoiser, x_hat, sigma)
        worst.append((found - wanted).abs().max() / sigma.clamp_min(1))
    return float(torch.stack(worst).max())
