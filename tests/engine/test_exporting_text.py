"""Text-to-image generators as folders of diffusers: stock pipelines that make the same images in one step."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from gentk.engine.draw import starts
from gentk.engine.exporting import export, text_pipeline
from gentk.errors import RecipeError, RunFailed
from gentk.nets import weights
from gentk.processes import latent
from tests.nets import tiny_pipelines

CPU = torch.device("cpu")
PROMPTS = ["a red cube", "two cats"]
# The U-Net at a level between two timesteps, the transformer likewise, and the flow from pure noise.
CASES: dict[str, float | str] = {"sd15": 2.5, "sd2": 2.5, "pixart": 2.5, "sd3": "inf"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENTK_CACHE", str(root / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name, once in CASES.items():
            base = getattr(tiny_pipelines, name)(root / name)
            tiny_pipelines.generator(base, root / f"{name}.safetensors", once)
        yield root


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_the_folder_is_the_generator(made: Path, tmp_path: Path, name: str) -> None:
    """Loaded by diffusers alone, from prompts, without code of ours: latents as by the generator's own call."""
    diffusers, _ = tiny_pipelines.packages()
    out = tmp_path / "folder"
    found = export(str(made / f"{name}.safetensors"), "diffusers", out)
    assert found.difference <= found.tolerance
    assert not list(out.rglob("*.py"))
    model = latent.load(str(made / f"{name}.safetensors"), where=CPU)
    process, once = model.denoiser.process, model.sigma_init
    t = process.t_of(torch.tensor(once, dtype=torch.float64)).clamp(max=process.t_max)
    z = starts(3, 0, 2, model.shape)
    ours = model.denoiser(float(process.sigma(t)) * z, t, model.prompter.encode(PROMPTS))
    pipe = diffusers.DiffusionPipeline.from_pretrained(out, local_files_only=True, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    more = {"use_resolution_binning": False, "clean_caption": False} if name == "pixart" else {}
    call = json.loads((out / "gentk.json").read_text())["call"]
    side = {"height": model.pixels, "width": model.pixels}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' of its own deprecations
        theirs = pipe(PROMPTS, latents=z, output_type="latent", **call, **side, **more).images
    assert float((ours - theirs).abs().max()) <= found.tolerance * max(1.0, min(float(once or 0), 80.0))
    base = latent.load(str(made / name), where=CPU)  # not the teacher's network
    assert float((base.denoiser(float(process.sigma(t)) * z, t, None) - theirs).abs().max()) > 100 * found.tolerance


def test_an_export_that_computes_something_else_is_not_written(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another first level, or the base's own scheduler, whose first timestep is the last."""
    real = text_pipeline._scheduler

    def other(diffusers: Any, model: Any) -> Any:
        made = real(diffusers, model)
        return type(made).from_config(made.config, sigma_max=1.02 * made.config.sigma_max)

    monkeypatch.setattr(text_pipeline, "_scheduler", other)
    with pytest.raises(RunFailed, match="loaded again it differs"):
        export(str(made / "sd15.safetensors"), "diffusers", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_what_has_no_such_form(made: Path, tmp_path: Path) -> None:
    flow = tiny_pipelines.generator(made / "sd3", tmp_path / "flow.safetensors", 2.5)
    with pytest.raises(RecipeError, match=r"noise level 2\.5"):
        export(str(flow), "diffusers", tmp_path / "folder")
    for form, suffix in (("onnx", ".onnx"), ("torch-export", ".pt2"), ("safetensors", ".safetensors")):
        with pytest.raises(RecipeError, match="a whole pipeline"):
            export(str(flow), form, tmp_path / f"other{suffix}")


def test_a_network_that_was_only_trained_on_is_exported_as_it_is(made: Path, tmp_path: Path) -> None:
    model = latent.load(str(made / "sd15"), where=CPU)
    weights.save(tmp_path / "tuned.safetensors", model.denoiser.net, model.header)
    found = export(str(tmp_path / "tuned.safetensors"), "diffusers", tmp_path / "folder")
    assert found.difference == 0
    again = latent.load(str(tmp_path / "folder"), where=CPU)
    x = starts(0, 0, 1, model.shape)
    assert torch.equal(*(each.denoiser(x, torch.tensor(500.0), None) for each in (model, again)))
