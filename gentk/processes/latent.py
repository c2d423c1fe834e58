"""Text-to-image models as denoisers of latents: network, VAE and text encoders of one pipeline, by name, folder or run.

    denoiser(x_t, t, prompts) -> x0        x_t (B, C, h, w) latents, prompts of B or None for the null prompt
    codec.decode(x0) -> images             (B, 3, H, W) about [-1, 1]

Stable Diffusion and PixArt are noised by our `discrete` process, SD3 by `rectified-flow`; the shift of SD3's scheduler
is a choice of times, in grids and in laws of time, and not of the network, which is told 1000 t.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gentk.errors import GentkError, RecipeError
from gentk.nets import text
from gentk.nets.text import codec, scheduler
from gentk.nets.text.codec import Codec
from gentk.nets.text.encoders import Prompter
from gentk.nets.weights import load_into
from gentk.processes import schedules
from gentk.processes.denoiser import Denoiser
from gentk.processes.models import Model
from gentk.recipe import pipelines, stamp
from gentk.recipe.prompts import Latent
from gentk.recipe.schema import Inputs, Predicts

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SIGMA_DATA = 1.0  # what `scaling_factor` is chosen for: latents of unit variance


@dataclass(frozen=True)
class TextToImage:
    """A loaded model: its name as the user gave it, the denoiser in eval mode without gradients and with its null
    prompt, the VAE, the text encoders, the shape of one latent sample, and the header that an export of it has.
    """

    name: str
    denoiser: Denoiser
    codec: Codec
    prompter: Prompter
    shape: tuple[int, int, int]
    header: dict[str, Any]
    folder: Path

    @property
    def model(self) -> Model:
        """The denoiser as `gentk.processes.models` has one, for what works on latents alone."""
        return Model(self.name, self.denoiser, self.header)

    @property
    def pixels(self) -> int:
        """Side of an image."""
        return self.shape[1] * self.codec.factor

    @property
    def sigma_init(self) -> float | None:
        """The noise level at which a one-step generator is called; None for a many-step model."""
        return float(self.header["sigma_init"]) if self.header["kind"] == "generator" else None


def load(ref: str, *, where: torch.device, section: Latent | None = None, offline: bool = False) -> TextToImage:
    """The model that `ref` stands for (`gentk.recipe.pipelines`), network and VAE on device `where`.

    The text encoders stay on the disk until a prompt needs them. Raises MissingAsset where something is absent,
    GentkError for files of another kind, RecipeError for a size that the model cannot make.
    """
    section = section or Latent()
    source, own = pipelines.base(ref)
    place = pipelines.folder(source, offline=offline)
    family = pipelines.family_of(place)
    dtype = DTYPES[section.dtype]
    made = {} if own is None else stamp.read_header(own)
    if own is None:
        net = text.load(family, place, dtype)
    else:
        net = text.build(family, made["net"]["config"])
        load_into(net, own)
        net = net.to(dtype).eval().requires_grad_(False)
    vae = codec.load(place, DTYPES[section.decode])
    meaning = scheduler.read(place)
    inputs, predicts = meaning.inputs, meaning.predicts
    if made:
        # through JSON, where the strict schemas take arrays for tuples
        inputs, predicts = Inputs.model_validate_json(json.dumps(made["inputs"])), _predicts(made, ref)
    config = dict(net.core.config)
    shape = _shape(ref, config, vae, section.size)
    width = int(config.get("joint_attention_dim") or 0)
    prompter = Prompter(place, family, dtype=dtype, width=width, t5=section.t5, cache=section.cache)
    net.set_null(prompter.null("cpu" if where.type == "meta" else where))  # moved with the network
    process = schedules.build(meaning.process)
    denoiser = Denoiser(net, process, predicts, SIGMA_DATA, inputs).to(where)
    row = pipelines.known(source)
    header = made or {
        "kind": "denoiser",
        "net": {"name": "diffusers", "family": family, "config": _plain(config)},
        "pipeline": source,
        "process": meaning.process.model_dump(mode="json"),
        "predicts": predicts,
        "inputs": inputs.model_dump(mode="json"),
        "sigma_data": SIGMA_DATA,
        "shift": meaning.shift,
        "licence": row.licence if row else "see its model card",
    }
    header |= {"data": {"name": "text", "shape": shape, "classes": 0, "range": (-1, 1)}}
    return TextToImage(ref, denoiser, vae.to(where), prompter, shape, header, place)


def _predicts(header: dict[str, Any], ref: str) -> Predicts:
    found: Predicts = header["predicts"]
    if found not in ("x0", "eps", "v", "flow"):
        raise GentkError(f"{ref}: header: predicts `{found}`", hint="export the model again")
    return found


def _shape(ref: str, config: dict[str, Any], vae: Codec, size: int | None) -> tuple[int, int, int]:
    """Shape of one latent sample of images `size` pixels wide. Raises RecipeError for a size that does not fit."""
    channels, patch = int(config["in_channels"]), int(config.get("patch_size") or 1)
    if channels != vae.channels:
        raise GentkError(
            f"{ref}: the network takes latents of {channels} channels, the VAE makes {vae.channels}",
            hint="they are of two models",
        )
    usual = config["sample_size"]
    pixels = size or int(usual if isinstance(usual, int) else usual[0]) * vae.factor
    step = vae.factor * patch
    if pixels % step:
        near = max(step, round(pixels / step) * step)
        raise RecipeError(
            f"latent.size: {pixels} pixels are no whole number of {step} ({vae.factor} pixels a latent"
            + (f", {patch} latents a patch)" if patch > 1 else ")"),
            hint=f"--set latent.size={near}",
        )
    side = pixels // vae.factor
    largest = config.get("pos_embed_max_size")
    if largest is not None and side // patch > largest:
        raise RecipeError(
            f"latent.size: {pixels} pixels are {side // patch} patches wide, `{ref}` knows {largest}",
            hint=f"at most --set latent.size={largest * step}",
        )
    return channels, side, side


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A config as JSON has it, without where its weights lay and what diffusers noted for itself."""
    return {key: value for key, value in config.items() if key != "_name_or_path" and not key.startswith("_use_")}
