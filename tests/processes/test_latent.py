"""Text-to-image models against the library's own pipelines: encode, noise, denoise, guide, decode, and whole samples.

Both sides compute in float32 from the same weights. They differ by the order of sums and by the library's betas, which
are float32: a thousand roundings of 2^-24 in abar, about 2e-6 of it, so that 1e-5 of the largest value is allowed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gentk.processes import grids, latent
from gentk.processes.guidance import guided
from gentk.processes.latent import TextToImage
from gentk.processes.process import diffuse
from gentk.recipe.schema import LeadingGrid, TimeGrid
from gentk.solvers import ddim, euler
from tests.nets import tiny_pipelines

CPU = torch.device("cpu")
CLOSE = 1e-5
KINDS = ("sd15", "sd2", "pixart", "sd3", "sd3-without-t5")
DISCRETE = KINDS[:3]
PROMPTS = ["a red cube on a blue ball", "Two cats"]
Made = Callable[[str], tuple[TextToImage, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Kind -> the model as gentk and as diffusers loads it from one folder, offline."""
    diffusers, _ = tiny_pipelines.packages()
    root = tmp_path_factory.mktemp("pipelines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENTK_CACHE", str(root / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")

        @cache
        def load(kind: str) -> tuple[TextToImage, Any]:
            place = folder(kind, root)
            absent = {"text_encoder_3": None, "tokenizer_3": None} if kind == "sd3-without-t5" else {}
            pipe = diffusers.DiffusionPipeline.from_pretrained(
                place, local_files_only=True, low_cpu_mem_usage=False, **absent
            )
            pipe.set_progress_bar_config(disable=True)
            return latent.load(str(place), where=CPU), pipe

        yield load


def folder(kind: str, root: Path) -> Path:
    if kind == "sd3-without-t5":
        return tiny_pipelines.sd3(root / kind, t5_too=False)
    place: Path = getattr(tiny_pipelines, kind)(root / kind)
    return place


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value, or over 1 if that is less."""
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encoded(kind: str, pipe: Any, texts: list[str]) -> dict[str, Tensor]:
    """What the library makes of prompts, by the names of `Prompts`; `null_` before those of the empty one."""
    if kind.startswith("sd3"):
        own, null, pooled, null_pooled = pipe.encode_prompt(texts, None, None, device=CPU)
        return {"embeds": own, "null_embeds": null, "pooled": pooled, "null_pooled": null_pooled}
    if kind == "pixart":
        own, mask, null, null_mask = pipe.encode_prompt(texts, device=CPU, clean_caption=False)
        return {"embeds": own, "mask": mask, "null_embeds": null, "null_mask": null_mask}
    own, null = pipe.encode_prompt(texts, CPU, 1, True)
    return {"embeds": own, "null_embeds": null}


def raw(kind: str, pipe: Any, x: Tensor, k: Tensor, prompts: dict[str, Tensor], null: bool = False) -> Tensor:
    """The library's network at its own timestep."""
    own = {name.removeprefix("null_"): each for name, each in prompts.items() if name.startswith("null_") == null}
    if kind.startswith("sd3"):
        words = {"encoder_hidden_states": own["embeds"], "pooled_projections": own["pooled"]}
        return pipe.transformer(hidden_states=x, timestep=k.expand(len(x)), **words).sample
    if kind == "pixart":
        words = {"encoder_hidden_states": own["embeds"], "encoder_attention_mask": own["mask"]}
        told = {"resolution": None, "aspect_ratio": None}
        return pipe.transformer(x, timestep=k.expand(len(x)), added_cond_kwargs=told, **words).sample[:, :4]
    return pipe.unet(x, k, encoder_hidden_states=own["embeds"]).sample


def predicted(kind: str, pipe: Any, x: Tensor, k: int, out: Tensor) -> Tensor:
    """The clean sample that the library's scheduler makes of a network's output at timestep k of a thousand."""
    if kind.startswith("sd3"):
        return x - k / 1000 * out
    pipe.scheduler.set_timesteps(1000)
    return pipe.scheduler.step(out, k, x).pred_original_sample


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_are_embedded_as_the_pipeline_does(made: Made, kind: str) -> None:
    model, pipe = made(kind)
    theirs, ours, null = encoded(kind, pipe, PROMPTS), model.prompter.encode(PROMPTS), model.prompter.null()
    found = ours.tensors() | {f"null_{name}": x for name, x in null.expand(2).tensors().items()}
    assert found.keys() == theirs.keys()
    for name, x in theirs.items():
        assert distance(found[name].float(), x.float()) < CLOSE, name
    assert float((ours.embeds[0] - ours.embeds[1]).abs().max()) > 0.1, "the tokenizer takes all prompts for one"


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_added_as_the_scheduler_does(made: Made, kind: str) -> None:
    model, pipe = made(kind)
    x0, eps = noise(2, *model.shape, seed=1), noise(2, *model.shape, seed=2)
    for k in (1, 300, 600, 999):
        if kind.startswith("sd3"):  # its scheduler's sigma is our time: k / 1000
            theirs, t = (1 - k / 1000) * x0 + k / 1000 * eps, k / 1000
        else:
            theirs, t = pipe.scheduler.add_noise(x0, eps, torch.tensor([k, k])), k + 1.0
        ours = diffuse(model.denoiser.process, x0, torch.tensor(t), eps)
        assert distance(ours, theirs) < CLOSE, k


def time_of(kind: str, k: int) -> Tensor:
    return torch.tensor(k / 1000 if kind.startswith("sd3") else k + 1.0, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_denoiser_and_guidance_are_those_of_the_pipeline(made: Made, kind: str) -> None:
    model, pipe = made(kind)
    x, prompts, scale = noise(2, *model.shape, seed=3), model.prompter.encode(PROMPTS), 7.5
    theirs = encoded(kind, pipe, PROMPTS)
    for k in (1, 300, 600, 999):
        stamp, t = torch.tensor(float(k) if kind.startswith("sd3") else k), time_of(kind, k)
        own, null = raw(kind, pipe, x, stamp, theirs), raw(kind, pipe, x, stamp, theirs, null=True)
        assert distance(model.denoiser(x, t, prompts), predicted(kind, pipe, x, k, own)) < CLOSE
        assert distance(model.denoiser(x, t, None), predicted(kind, pipe, x, k, null)) < CLOSE
        wanted = predicted(kind, pipe, x, k, null + scale * (own - null))
        # guidance multiplies the rounding of both calls by 2 scale - 1
        assert distance(guided(model.denoiser, scale)(x, t, prompts), wanted) < (2 * scale - 1) * CLOSE
        if k == 1:  # next to no noise: there is nothing to guide
            continue
        for wrong in (scale - 1, scale + 1):  # omega taken for the scale, and the other way round
            assert distance(guided(model.denoiser, wrong)(x, t, prompts), wanted) > 100 * CLOSE, wrong


@pytest.mark.parametrize("kind", DISCRETE)
@torch.no_grad()
def test_a_timestep_off_by_one_is_seen(made: Made, kind: str) -> None:
    model, pipe = made(kind)
    x, prompts, theirs = noise(2, *model.shape, seed=3), model.prompter.encode(PROMPTS), encoded(kind, pipe, PROMPTS)
    wanted = predicted(kind, pipe, x, 600, raw(kind, pipe, x, torch.tensor(600), theirs))
    assert distance(model.denoiser(x, torch.tensor(600.0), prompts), wanted) > 100 * CLOSE


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_vae_scales_as_the_pipeline_does(made: Made, kind: str) -> None:
    model, pipe = made(kind)
    z, config = noise(2, *model.shape, seed=4), pipe.vae.config
    shift = config.shift_factor or 0.0
    theirs = pipe.vae.decode(z / config.scaling_factor + shift).sample
    images = model.codec.decode(z)
    assert distance(images, theirs) < CLOSE
    mean = pipe.vae.encode(images).latent_dist.mean
    assert distance(model.codec.encode(images), (mean - shift) * config.scaling_factor) < CLOSE
    gen = torch.Generator().manual_seed(5)
    drawn = model.codec.encode(images, gen)
    std = pipe.vae.encode(images).latent_dist.std
    own = torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
    assert distance(drawn, (mean + std * own - shift) * config.scaling_factor) < CLOSE
    if shift:  # what is left out, or taken twice, must show
        assert distance(images, pipe.vae.decode(z / config.scaling_factor).sample) > 100 * CLOSE
    assert distance(images, pipe.vae.decode(z * config.scaling_factor + shift).sample) > 100 * CLOSE


def test_decoding_has_a_gradient(made: Made) -> None:
    """Against a difference quotient along one direction: in float64, where a step of 1e-6 leaves 1e-5 of it."""
    model, _ = made("sd3")
    own = model.codec.double()
    try:
        z, way = noise(1, *model.shape, seed=6).double(), noise(1, *model.shape, seed=7).double()
        z.requires_grad_(True)
        own.decode(z).square().sum().backward()
        assert z.grad is not None
        with torch.no_grad():
            up, down = (own.decode(z + sign * 1e-6 * way).square().sum() for sign in (1, -1))
        assert float((z.grad * way).sum()) == pytest.approx(float(up - down) / 2e-6, rel=1e-5)
    finally:
        own.float()


# SD3's scheduler in diffusers shifts 0.001, its smallest time, when it is made and again when its steps are
TWICE = 3 * 0.001 / (1 + 2 * 0.001)


def sampled(kind: str, model: TextToImage, z: Tensor, steps: int, scale: float, **grid: Any) -> Tensor:
    process, prompts = model.denoiser.process, model.prompter.encode(PROMPTS)
    denoise = guided(model.denoiser, scale)
    if kind.startswith("sd3"):
        times = grids.build(TimeGrid(name="time", **{"shift": 3.0, "t_min": TWICE} | grid), steps, process)
        return euler.solve(denoise, process, z, times, torch.zeros_like, cond=prompts)
    own = {"offset": 0 if kind == "pixart" else 1} | grid
    return ddim.solve(
        denoise,
        process,
        z,
        grids.build(LeadingGrid(name="leading", **own), steps, process),
        torch.zeros_like,
        cond=prompts,
    )


def pipeline_sample(kind: str, pipe: Any, z: Tensor, steps: int, scale: float, side: int) -> Tensor:
    more = {"use_resolution_binning": False, "clean_caption": False} if kind == "pixart" else {}
    out: Tensor = pipe(
        PROMPTS,
        height=side,
        width=side,
        num_inference_steps=steps,
        guidance_scale=scale,
        latents=z,
        output_type="latent",
        **more,
    ).images
    return out


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_samples_are_those_of_the_pipeline(made: Made, kind: str) -> None:
    """Whole samples: the pipeline's own DDIM or Euler loop, with guidance, against ours from the same latents.

    Every step may add what one call may differ by (`CLOSE`, times 2 scale - 1 for guidance).
    """
    model, pipe = made(kind)
    z, steps, scale = noise(2, *model.shape, seed=8), 6, 3.0
    theirs = pipeline_sample(kind, pipe, z, steps, scale, model.pixels)
    allowed = steps * (2 * scale - 1) * CLOSE
    assert distance(sampled(kind, model, z, steps, scale), theirs) < allowed
    wrongs: list[Tensor] = [sampled(kind, model, z, steps, scale - 1)]
    if kind.startswith("sd3"):
        wrongs += [sampled(kind, model, z, steps, scale, shift=1.0), sampled(kind, model, z, steps, scale, t_min=0.001)]
    else:
        wrongs.append(sampled(kind, model, z, steps, scale, offset=1 if kind == "pixart" else 0))
    for k, wrong in enumerate(wrongs):  # guidance off by one; no shift, or shifted once; timesteps off by one
        assert distance(wrong, theirs) > 10 * allowed, k
