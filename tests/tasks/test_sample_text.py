"""Text-to-image models as commands: images as the library makes them, their prompts beside them; what is refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from gentk.engine.draw import starts
from gentk.errors import Stopped
from gentk.metrics import geneval, mask2former
from gentk.recipe import pipelines, store
from gentk.recipe.load import load
from gentk.tasks.sample import _painting
from tests.nets import tiny_pipelines
from tests.tasks.test_geneval import Seen
from tests.tasks.test_sample_evaluate import done, info, refused

PROMPTS = ["a red cube", "two cats on a shelf"]
DDIM = ("--set", "grid={name: leading, offset: 1}", "--nfe", 4)
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "cow", "count": 1}], "prompt": "a photo of a cow"},
    {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "a photo of two dogs"},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of pipelines, a one-step generator, and the cache of prompts, which all tests share."""
    root = tmp_path_factory.mktemp("made")
    tiny_pipelines.sd15(root / "sd15")
    tiny_pipelines.sd3(root / "sd3")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENTK_CACHE", str(root / "cache"))
        tiny_pipelines.generator(root / "sd15", root / "one.safetensors", 2.5)
    return root


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENTK_CACHE", str(made / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    Path("prompts.txt").write_text("".join(p + "\n" for p in PROMPTS))


def pixels(run: str) -> torch.Tensor:
    files = sorted((Path(run) / "png").glob("*.png"))
    found = []
    for file in files:
        with Image.open(file) as image:
            found.append(np.array(image))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).int()


def library(place: Path, z: torch.Tensor, texts: list[str], **how: Any) -> torch.Tensor:
    """What diffusers makes of a folder, as bytes."""
    diffusers, _ = tiny_pipelines.packages()
    pipe = diffusers.DiffusionPipeline.from_pretrained(place, local_files_only=True, low_cpu_mem_usage=False)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(texts, height=8 * z.shape[2] // 4, width=8 * z.shape[3] // 4, latents=z, output_type="np", **how).images
    return torch.from_numpy((out * 255).round()).permute(0, 3, 1, 2).int()


def test_images_are_the_librarys_with_their_prompts_beside_them(made: Path) -> None:
    """From the same noise, guided, DDIM: PNGs differ by at most one of 255, which rounding may cost."""
    done(
        "sample", "ddim", "--model", made / "sd15", "--prompts", "prompts.txt", "--per-prompt", 2,
        "--guidance-scale", 3, *DDIM, "--set", "save=[png, npz, grid]", "--out", "run",
    )  # fmt: skip
    sigma = info(Path("run"))["metrics"]
    assert sigma == {"n": 4, "nfe": 8, "prompts": 2, "prompts_cut": 0, "ms_per_sample": sigma["ms_per_sample"]}
    facts = json.loads(Path("run/samples.json").read_text())
    s = facts["noise_levels"][0]
    z = starts(0, 0, 4, (4, 8, 8)) * s / math.sqrt(1 + s**2)  # noise of the level of its first timestep
    texts = [p for p in PROMPTS for _ in range(2)]
    theirs = library(made / "sd15", z, texts, num_inference_steps=4, guidance_scale=3.0)
    assert int((pixels("run") - theirs).abs().max()) <= 1
    off = library(made / "sd15", z, texts, num_inference_steps=4, guidance_scale=2.0)
    assert int((pixels("run") - off).abs().max()) > 3  # omega for the scale
    rows = [json.loads(line) for line in Path("run/prompts.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == texts
    assert [row["file"] for row in rows] == [f"png/{k:06d}.png" for k in range(4)]
    assert np.array_equal(np.load("run/samples.npz")["samples"], pixels("run").numpy())
    with Image.open("run/samples/grid.png") as grid:
        assert grid.size[0] > 2 * 16


def test_flow_models_take_the_times_of_their_scheduler(made: Path) -> None:
    done(
        "sample", "euler", "--model", made / "sd3", "--prompt", PROMPTS[0], "--prompt", PROMPTS[1],
        "--guidance-scale", 2, "--nfe", 4, "--set", "latent.dtype=float32", "--out", "run",
    )  # fmt: skip
    # the recipe's bfloat16 would differ from the library's float32 by what a processor's kernels make of it
    theirs = library(made / "sd3", starts(0, 0, 2, (4, 16, 16)), PROMPTS, num_inference_steps=4, guidance_scale=2.0)
    assert int((pixels("run") - theirs).abs().max()) <= 1
    assert "grid.shift" not in Path("run/log.txt").read_text()
    done("sample", "euler", "--model", made / "sd3", "--prompt", "a", "--nfe", 1, "--set", "grid.shift=1", "--out", "b")
    assert "grid.shift: 1; the model's own scheduler has 3" in Path("b/log.txt").read_text()


def test_an_image_does_not_depend_on_the_batch(made: Path) -> None:
    words = ("sample", "sa-solver", "--model", made / "sd15", "--prompts", "prompts.txt", "--nfe", 3)
    done(*words, "-n", 5, "--out", "whole")
    done(*words, "--seeds", "2-4", "--set", "batch=1", "--out", "part")
    assert int((pixels("part") - pixels("whole")[2:]).abs().max()) <= 1
    rows = [json.loads(line) for line in Path("part/prompts.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [PROMPTS[k % 2] for k in (2, 3, 4)]  # prompts go round
    assert [row["index"] for row in rows] == [2, 3, 4]


def test_a_stopped_run_goes_on(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("sample", "euler", "--model", made / "sd15", "--prompts", "prompts.txt", "-n", 3, "--nfe", 2)
    words = (*words, "--set", "batch=1")
    done(*words, "--out", "whole")
    drawn, real = [], _painting.draw

    def draw(*args: Any, **how: Any) -> torch.Tensor:
        if len(drawn) == 2:
            raise Stopped("asked to")
        drawn.append(how["first"])
        return real(*args, **how)

    monkeypatch.setattr(_painting, "draw", draw)
    refused(75, "asked to", *words, "--out", "run")
    drawn.clear()
    done(*words, "--out", "run")
    assert drawn == [2], "two of three were on the disk"
    assert torch.equal(pixels("run"), pixels("whole"))
    assert not (Path("run") / "parts").exists()


def test_one_step_generators(made: Path) -> None:
    words = ("sample", "one-step", "--model", made / "one.safetensors")
    done(*words, "--prompts", "prompts.txt", "--out", "run")
    assert info(Path("run"))["metrics"]["nfe"] == 1
    assert pixels("run").shape == (2, 3, 16, 16)
    refused(2, "distilled with its guidance inside", *words, "--prompt", "a", "--guidance-scale", 2)
    refused(2, "is a generator", "sample", "euler", "--model", made / "one.safetensors", "--prompt", "a")
    refused(2, "is a denoiser", "sample", "one-step", "--model", made / "sd15", "--prompt", "a")
    refused(2, "one method at a time", "sample", "--compare", "euler,heun", "--model", made / "sd15")
    refused(2, "works on models without prompts", "restore", "dps", "--model", made / "sd15")
    refused(2, "works on models without prompts", "evaluate", "fd", "--samples", made / "one.safetensors")


def test_long_prompts_are_warned_of_and_counted(made: Path) -> None:
    Path("long.txt").write_text("a cat\n" + "b" * 90 + "\n")
    done("sample", "euler", "--model", made / "sd15", "--prompts", "long.txt", "--nfe", 1, "--out", "run")
    assert info(Path("run"))["metrics"]["prompts_cut"] == 1
    assert "text_encoder: 1 of 2 prompts are longer than its 77 tokens" in Path("run/log.txt").read_text()


def test_what_is_wrong_is_said_before_anything_is_drawn(made: Path) -> None:
    words = ("sample", "euler", "--model", made / "sd15")
    Path("blank.txt").write_text("a\n\nb\n")
    Path("empty.txt").write_text("")
    refused(2, "no prompts", *words)
    refused(2, "line 2 is blank", *words, "--prompts", "blank.txt")
    refused(2, "empty.txt: empty", *words, "--prompts", "empty.txt")
    refused(2, "line 2 is blank", *words, "--prompts", "blank.txt", "-n", 3)
    refused(3, "none.txt: no such file", *words, "--prompts", "none.txt", "-n", 3)
    refused(2, "both say what to show", *words, "--prompts", "blank.txt", "--prompt", "a")
    refused(2, "scale = 1 + omega", *words, "--prompt", "a", "--omega", 1, "--guidance-scale", 2)
    refused(2, "labels: means nothing", *words, "--prompt", "a", "--set", "labels=[1]")
    refused(2, "threshold: means nothing", *words, "--prompt", "a", "--set", "threshold={name: static}")
    refused(2, "17 pixels are no whole number", *words, "--prompt", "a", "--set", "latent.size=17")
    refused(2, "is no text-to-image model", "sample", "heun", "--model", "edm-digits", "--prompt", "a")
    refused(3, "hf download stabilityai/stable-diffusion-3", "sample", "euler", "--model", "stable-diffusion-3")
    refused(2, "map of a flow's time", *words, "--prompt", "a", "--set", "grid={name: time, shift: 3}")
    assert not list(Path().glob("runs/*"))


def test_both_conventions_of_guidance_are_one_recipe(made: Path) -> None:
    for name, value in (("--omega", 1.5), ("--guidance-scale", 2.5)):
        words = ("sample", "euler", "--model", made / "sd15", "--prompt", "a", "--nfe", 1, name, value)
        done(*words, "--out", name.strip("-"))
    one, other = (load(Path(name) / "recipe.yaml").recipe for name in ("omega", "guidance-scale"))
    assert one == other
    assert one.guidance == 2.5


def test_a_negative_prompt_takes_the_null_prompts_place(made: Path) -> None:
    words = ("sample", "ddim", "--model", made / "sd15", "--prompt", "a cat", "--guidance-scale", 5, *DDIM)
    done(*words, "--set", "prompts.negative=two dogs", "--out", "run")
    s = json.loads(Path("run/samples.json").read_text())["noise_levels"][0]
    z = starts(0, 0, 1, (4, 8, 8)) * s / math.sqrt(1 + s**2)
    how: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 5.0}
    ours = pixels("run")
    assert int((ours - library(made / "sd15", z, ["a cat"], negative_prompt=["two dogs"], **how)).abs().max()) <= 1
    assert int((ours - library(made / "sd15", z, ["a cat"], **how)).abs().max()) > 1


def test_dry_runs_say_what_would_be_drawn(made: Path) -> None:
    words = ("sample", "heun", "--model", made / "sd15", "--prompts", "prompts.txt", "--guidance-scale", 2, "--nfe", 5)
    assert "2 images of 16 x 16 pixels from 2 prompts, 10 NFE each" in done(*words, "--dry-run").stdout


def test_without_a_cache_nothing_is_kept_and_images_are_the_same(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("sample", "euler", "--model", made / "sd15", "--prompts", "prompts.txt", "--nfe", 1)
    done(*words, "--out", "a")
    monkeypatch.setenv("GENTK_CACHE", "empty")
    done(*words, "--set", "latent.cache=false", "--out", "b")
    assert not Path("empty").exists()
    assert torch.equal(pixels("a"), pixels("b"))


def test_an_absent_package_is_named(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused(3, "diffusers cannot be imported", "sample", "euler", "--model", made / "sd15", "--prompt", "a")


# --- recipes ----------------------------------------------------------------------------------------------------------

OF_NAME = {"stable-diffusion-1.5": "sd15", "stable-diffusion-2.1": "sd2", "pixart-alpha": "pixart"}
RECIPES = [e.name for e in store.recipes() if e.task == "sample" and e.subject in pipelines.BY_NAME]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the hub's in which small twins stand in the published models' places."""
    root = tmp_path_factory.mktemp("hub")
    for name, row in pipelines.BY_NAME.items():
        place = root / f"models--{row.source.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("a" * 40)
        getattr(tiny_pipelines, OF_NAME.get(name, "sd3"))(place / "snapshots" / ("a" * 40))
    return root


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_run_by_name_from_the_hubs_cache(name: str, hub: Path, made: Path, monkeypatch: Any) -> None:
    """Every recipe as it ships but for the number of evaluations, offline."""
    huggingface = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(huggingface.constants, "HF_HUB_CACHE", str(hub))  # read from the environment on import
    _, method, subject = name.split("/")
    words: tuple[object, ...] = ("--model", subject, "--nfe", 5)
    if method == "one-step":
        words = ("--recipe", name, "--model", made / "one.safetensors")
    done("sample", method, *words, "--out", "run")
    assert info(Path("run"))["metrics"]["n"] == len(pixels("run")) == 4
    if method != "one-step":
        revision = info(Path("run"))["inputs"]
        assert revision == {subject: "a" * 40}


# --- what is measured of them -----------------------------------------------------------------------------------------


def test_prompts_of_a_run_are_those_of_its_evaluation(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gentk.rewards import clip

    done("sample", "euler", "--model", made / "sd15", "--prompts", "prompts.txt", "--per-prompt", 2, "--nfe", 1,
         "--set", "save=[png]", "--out", "run")  # fmt: skip
    seen: list[str] = []

    class Net:
        record: ClassVar[dict[str, str]] = {}

        def __call__(self, x: torch.Tensor, prompts: list[str]) -> torch.Tensor:
            seen.extend(prompts)
            return x.float().mean((1, 2, 3))

    monkeypatch.setattr(clip, "build", lambda *_, **__: Net())
    done("evaluate", "clip", "--samples", "run", "--out", "own")
    assert seen == [p for p in PROMPTS for _ in range(2)]
    seen.clear()
    done("evaluate", "clip", "--samples", "run/png", "--prompts", "prompts.txt", "--set", "method.per_prompt=2",
         "--out", "given")  # fmt: skip
    assert seen == [p for p in PROMPTS for _ in range(2)]
    figures = [info(Path(name))["metrics"]["clip"] for name in ("own", "given")]
    assert figures[0] == figures[1]


def test_records_keep_what_geneval_asks_for(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("g.jsonl").write_text("".join(json.dumps(each) + "\n" for each in GENEVAL))
    done(
        "sample", "euler", "--model", made / "sd15", "--prompts", "g.jsonl", "--per-prompt", 2, "--nfe", 1, "--out", "r"
    )
    asked = [each for each in geneval.read_prompts(Path("g.jsonl")) for _ in range(2)]
    assert geneval.read_prompts(Path("r/prompts.jsonl")) == asked
    monkeypatch.setattr(mask2former, "build", lambda *_, **__: Seen())
    done("evaluate", "geneval", "--samples", "r", "--prompts", "g.jsonl", "--set", "method.per_prompt=2", "--out", "e")
    assert info(Path("e"))["metrics"].keys() >= {"geneval_single_object", "geneval_counting"}
