"""Exports hold the model's own function, readable without gentk, or are not written at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from gentk import nets
from gentk.engine import exporting
from gentk.engine.exporting import Exported, export, program
from gentk.errors import MissingAsset, RecipeError, RunFailed
from gentk.nets import weights
from gentk.processes import models, schedules
from gentk.recipe import schema
from gentk.recipe.stamp import read_header

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
UNET = schema.UNet(name="unet", width=8, multipliers=(1, 2), attention=(4,), dropout=0.1)
MLP = schema.Mlp(name="mlp", width=16, blocks=1)
DDPM = schema.DdpmUNet(name="ddpm-unet", width=8, multipliers=(1, 2), blocks=1, attention=(4,), head_width=4, groups=4)
VE = schema.VE(name="ve")
VP = schema.VP(name="vp")
FLOW = schema.RectifiedFlow(name="rectified-flow")
DISCRETE = schema.Discrete(name="discrete")
TIMESTEPS = {"scale": "process", "label": "time", "factor": 1.0, "offset": -1.0}


def saved(
    path: Path,
    kind: str = "generator",
    *,
    net: Any = UNET,
    process: Any = VE,
    predicts: str = "edm",
    shape: tuple[int, ...] = (1, 8, 8),
    classes: int = 3,
    **header: Any,
) -> Path:
    """A model whose every weight is at work, written as gentk writes it."""
    torch.manual_seed(0)
    built = nets.build(net, shape=shape, classes=classes)
    with torch.no_grad():
        for p in built.parameters():
            p.add_(0.1 * torch.randn(p.shape))
        if net is UNET:
            built.out.weight.mul_(5)  # type: ignore[operator,union-attr]  # so that some pixels are beyond the range
    header = {
        "kind": kind,
        "net": net.model_dump(mode="json"),
        "process": process.model_dump(mode="json"),
        "predicts": predicts,
        "sigma_data": 0.5,
        "data": {"name": "digits", "shape": shape, "classes": classes},
        "licence": "Apache-2.0",
        "recipe": "task: distill\n",
        **({"sigma_init": 2.5} if kind == "generator" else {}),
        **header,
    }
    weights.save(path, built, header)
    return path


def network(path: Path) -> torch.nn.Module:
    model = models.load(str(path), kinds=("generator", "denoiser"), where=CPU)
    return model.net.net  # type: ignore[no-any-return,union-attr]


def edm(path: Path, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """EDM's formulas (arXiv:2206.00364, table 1), written out: x0 of x = x0 + sigma eps."""
    s = sigma.double().reshape(-1, *(1 for _ in x.shape[1:])).expand(len(x), *(1 for _ in x.shape[1:]))
    n = (s**2 + 0.25).sqrt()
    with torch.no_grad():
        out = network(path)((x / n).float(), (s.reshape(-1).log() / 4).float(), labels)
    return (0.25 / n**2 * x + 0.5 * s / n * out).float()


def elsewhere(code: str, *words: Path, **env: str) -> None:
    """Runs code in a Python that has not imported gentk, and makes sure that it has not since."""
    code += "\nimport sys\nassert not [m for m in sys.modules if m == 'gentk' or m.startswith('gentk.')]\n"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, env=os.environ | env
    )
    assert done.returncode == 0, done.stderr


def inputs(n: int, shape: tuple[int, ...] = (1, 8, 8), classes: int = 3) -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(n)
    given = {"z": torch.randn((n, *shape), generator=gen)}
    return given | ({"labels": torch.randint(classes, (n,), generator=gen)} if classes else {})


# --- safetensors ------------------------------------------------------------------------------------------------------


def test_a_copy_is_the_same_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors")
    done = export(str(path), "safetensors", tmp_path / "new" / "c.safetensors")  # the folder is made
    assert done.path.read_bytes() == path.read_bytes()
    assert done == Exported(done.path, "safetensors", path.stat().st_size, 0.0, 0.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rounded_weights(tmp_path: Path, dtype: str) -> None:
    """Each weight is the nearest of the type, the header says the type, and the difference is what samples show."""
    path = saved(tmp_path / "m.safetensors")
    done = export(str(path), "safetensors", tmp_path / "c.safetensors", dtype=dtype)
    before, after = safetensors.torch.load_file(path), safetensors.torch.load_file(done.path)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[k], v.to(getattr(torch, dtype))) for k, v in before.items())
    old, new = read_header(path), read_header(done.path)
    assert new.pop("dtype") == dtype
    assert {k: v for k, v in new.items() if k != "bytes"} == {k: v for k, v in old.items() if k != "bytes"}
    z, labels = inputs(4).values()
    own = program.examples(models.load(str(path), kinds=("generator",), where=CPU), 4)
    z, labels = own
    sigma = torch.tensor(2.5)
    samples = [edm(p, 2.5 * z, sigma, labels).clamp(-1, 1) for p in (path, done.path)]
    gap = float((samples[0] - samples[1]).abs().max())
    assert done.difference == pytest.approx(gap, abs=2e-6)
    assert (gap > 1e-5) == (dtype != "float32")


def test_rounding_twice_is_an_export_of_the_rounded(tmp_path: Path) -> None:
    """A float16 file is a model: its copy differs by nothing, and float32 of it holds the rounded numbers."""
    half = export(
        str(saved(tmp_path / "m.safetensors")), "safetensors", tmp_path / "h.safetensors", dtype="float16"
    ).path
    assert export(str(half), "safetensors", tmp_path / "c.safetensors").difference == 0
    full = export(str(half), "safetensors", tmp_path / "f.safetensors", dtype="float32")
    assert full.difference == 0
    assert read_header(full.path)["dtype"] == "float32"


def test_a_weight_beyond_float16(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors")
    state = safetensors.torch.load_file(path)
    state["out.bias"] += 70_000  # the type ends at 65,504
    meta = {"gentk": json.dumps({k: v for k, v in read_header(path).items() if k not in ("bytes", "parameters")})}
    path.write_bytes(safetensors.torch.save(state, meta))
    with pytest.raises(RecipeError, match=r"out\.bias reaches 7") as failure:
        export(str(path), "safetensors", tmp_path / "c.safetensors", dtype="float16")
    assert "bfloat16" in failure.value.hint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors"]


# --- torch.export -----------------------------------------------------------------------------------------------------

LOAD = """
import sys, json, warnings
warnings.simplefilter("ignore")
import torch
from safetensors.torch import load_file, save_file
program, given, made = sys.argv[1:4]
extra = {"gentk.json": ""}
call = torch.export.load(program, extra_files=extra).module()
tensors = load_file(given)
names = json.loads(sys.argv[4])
out = {}
for n in ("5", "1"):
    out[n] = call(*(tensors[f"{name}{n}"] for name in names))
save_file(out, made, {"facts": extra["gentk.json"]})
"""


def reloaded(path: Path, names: list[str], given: dict[str, dict[str, Tensor]]) -> tuple[dict[str, Tensor], Any]:
    scratch = path.parent
    flat = {f"{name}{n}": each[name].contiguous() for n, each in given.items() for name in names}
    safetensors.torch.save_file(flat, scratch / "given")
    elsewhere(LOAD, path, scratch / "given", scratch / "made", Path(json.dumps(names)))
    with safetensors.safe_open(scratch / "made", "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    return safetensors.torch.load_file(scratch / "made"), facts


def test_a_generator_as_a_program(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors")
    done = export(str(path), "torch-export", tmp_path / "m.pt2")
    assert done.difference <= 1e-6
    given = {"5": inputs(5), "1": inputs(1)}
    found, facts = reloaded(done.path, ["z", "labels"], given)
    for n, each in given.items():
        wanted = edm(path, 2.5 * each["z"], torch.tensor(2.5), each["labels"])
        assert float(wanted.abs().max()) > 1  # so that the clamp is seen
        torch.testing.assert_close(found[n], wanted.clamp(-1, 1), rtol=0, atol=5e-6)  # our sums, in another order
        here = program.expected(models.load(str(path), kinds=("generator",), where=CPU), *each.values())
        torch.testing.assert_close(found[n], here, rtol=0, atol=1e-6)
    assert facts["licence"] == "Apache-2.0"
    assert facts["sigma_init"] == 2.5
    assert facts["recipe"] == "task: distill\n"
    assert str(ROOT).encode() not in done.path.read_bytes()  # where it was made is nobody's business


def test_points_have_no_range_and_may_have_no_classes(tmp_path: Path) -> None:
    """A flow of points: x0 = x_t - t F(x_t / n) with x_t = t z (t = s / (1 + s)), not clamped."""
    path = saved(
        tmp_path / "m.safetensors", net=MLP, process=FLOW, predicts="flow", shape=(2,), classes=0, sigma_init=4.0
    )
    done = export(str(path), "torch-export", tmp_path / "m.pt2")
    given = {"5": {"z": 3 * inputs(5, (2,), 0)["z"]}, "1": inputs(1, (2,), 0)}
    found, _ = reloaded(done.path, ["z"], given)
    t = 4.0 / 5.0
    n = ((1 - t) ** 2 / 4 + t**2) ** 0.5
    for k, each in given.items():
        x = t * each["z"]
        label = torch.full((len(x),), float(np.log(4.0) / 4))
        with torch.no_grad():
            wanted = x - t * network(path)(x / n, label, None)
        torch.testing.assert_close(found[k], wanted, rtol=1e-6, atol=1e-6)
    assert float(found["5"].abs().max()) > 1


@pytest.mark.parametrize(
    ("process", "predicts"), [(VE, "edm"), (VP, "v"), (FLOW, "flow"), (DISCRETE, "eps")], ids=lambda v: str(v)[:12]
)
def test_denoisers_speak_of_sigma_whatever_their_process(tmp_path: Path, process: Any, predicts: str) -> None:
    """x0 of x = x0 + sigma eps, each kind by its own algebra: in terms of s, x_t = alpha x.

    v = alpha eps - sigma x0 with alpha = 1 / sqrt(1 + s^2): x0 = alpha^2 x - s alpha v. eps: x - s eps.
    flow: (x - s f) / (1 + s).
    """
    path = saved(
        tmp_path / "m.safetensors", "denoiser", net=MLP, process=process, predicts=predicts, shape=(2,), classes=3
    )
    done = export(str(path), "torch-export", tmp_path / "m.pt2")
    assert done.difference <= 1e-6
    call = torch.export.load(done.path).module()
    gen = torch.Generator().manual_seed(1)
    s = torch.tensor([0.01, 0.3, 1.0, 20.0, 79.0])
    x = torch.randn(5, 2, generator=gen) * (1 + s[:, None])
    y = torch.tensor([0, 1, 2, 3, 0])  # 3: no label
    for rows in (slice(5), slice(2, 3)):
        found = call(x[rows], s[rows], y[rows])
        each = s[rows, None].double()
        alpha = 1 / (1 + each**2).sqrt()
        with torch.no_grad():
            scaled = (x[rows] / (each**2 + 0.25).sqrt()).float()
            out = network(path)(scaled, (each[:, 0].log() / 4).float(), y[rows])
        wanted = {
            "edm": edm(path, x[rows], s[rows], y[rows]),
            "v": alpha**2 * x[rows] - each * alpha * out,
            "eps": x[rows] - each * out,
            "flow": (x[rows] - each * out) / (1 + each),
        }[predicts]
        assert float(((found - wanted).abs() / each.clamp_min(1)).max()) < 2e-6


# --- ONNX -------------------------------------------------------------------------------------------------------------

RUN = """
import sys, json
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
given = np.load(sys.argv[2])
out = {n: session.run(None, {i.name: given[i.name + n] for i in session.get_inputs()})[0] for n in ("5", "1")}
np.savez(sys.argv[3], **out)
facts = {i.name: [i.type, i.shape] for i in [*session.get_inputs(), *session.get_outputs()]}
open(sys.argv[4], "w").write(json.dumps([facts, session.get_modelmeta().custom_metadata_map]))
assert "torch" not in sys.modules
"""


def run_onnx(path: Path, given: dict[str, dict[str, Tensor]]) -> tuple[dict[str, Tensor], Any, Any]:
    scratch = path.parent
    flat = {f"{name}{n}": v.numpy() for n, each in given.items() for name, v in each.items()}
    np.savez(scratch / "given.npz", **flat)  # type: ignore[arg-type]
    elsewhere(RUN, path, scratch / "given.npz", scratch / "made.npz", scratch / "facts.json")
    with np.load(scratch / "made.npz") as made:
        found = {n: torch.from_numpy(made[n]) for n in made.files}
    return found, *json.loads((scratch / "facts.json").read_text())


def test_a_generator_as_a_graph(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = saved(tmp_path / "m.safetensors")
    done = export(str(path), "onnx", tmp_path / "m.onnx")
    assert done.difference <= 1e-5
    given = {"5": inputs(5), "1": inputs(1)}
    found, ports, facts = run_onnx(done.path, given)
    for n, each in given.items():
        wanted = edm(path, 2.5 * each["z"], torch.tensor(2.5), each["labels"]).clamp(-1, 1)
        torch.testing.assert_close(found[n], wanted, rtol=0, atol=1e-5)
    assert ports == {
        "z": ["tensor(float)", ["batch", 1, 8, 8]],
        "labels": ["tensor(int64)", ["batch"]],
        "images": ["tensor(float)", ["batch", 1, 8, 8]],
    }
    assert (facts["licence"], facts["sigma_init"], facts["recipe"]) == ("Apache-2.0", "2.5", "task: distill\n")
    assert json.loads(facts["data"])["classes"] == 3
    assert str(ROOT).encode() not in done.path.read_bytes()


def test_a_discrete_denoiser_of_points_as_a_graph(tmp_path: Path) -> None:
    """The process's bisection too: at timesteps, between them, and below the first."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = saved(
        tmp_path / "m.safetensors",
        "denoiser",
        net=MLP,
        process=DISCRETE,
        predicts="eps",
        shape=(2,),
        classes=0,
    )
    done = export(str(path), "onnx", tmp_path / "m.onnx")
    process = schedules.build(DISCRETE)
    t = torch.tensor([0.4, 1.0, 17.0, 500.5, 1000.0], dtype=torch.float64)
    sigma = process.sigma(t) / process.alpha(t)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(2)) * (1 + sigma[:, None]).float()
    given = {"x": x, "sigma": sigma.float()}
    found, ports, _ = run_onnx(done.path, {"5": given, "1": {k: v[3:4] for k, v in given.items()}})
    with torch.no_grad():
        out = network(path)((x / (sigma[:, None] ** 2 + 0.25).sqrt()).float(), (sigma.log() / 4).float(), None)
    wanted = x - sigma[:, None] * out
    assert float(((found["5"] - wanted).abs() / sigma[:, None].clamp_min(1)).max()) < 1e-5
    torch.testing.assert_close(found["1"], found["5"][3:4], rtol=1e-5, atol=1e-5)
    assert ports["sigma"] == ["tensor(float)", ["batch"]]
    assert ports["x0"] == ["tensor(float)", ["batch", 2]]


@pytest.mark.parametrize("absent", ["onnx", "onnxscript", "onnxruntime"])
def test_onnx_without_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingAsset, match=f"{absent} cannot be imported") as failure:
        export(str(saved(tmp_path / "m.safetensors")), "onnx", tmp_path / "m.onnx")
    assert "pip install 'gentk[export]'" in failure.value.hint
    assert not (tmp_path / "m.onnx").exists()


# --- diffusers --------------------------------------------------------------------------------------------------------

PIPE = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
folder, given, made = sys.argv[1:]
try:
    DiffusionPipeline.from_pretrained(folder)
    raise SystemExit("code of a folder ran unasked")
except ValueError as e:
    assert "trust_remote_code=True" in str(e), e
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True).to("cpu")
pipe.set_progress_bar_config(disable=True)
tensors = load_file(given)
out = {}
for n in (5, 1):
    call = {"latents": tensors[f"z{n}"], "class_labels": tensors[f"labels{n}"]}
    out[str(n)] = pipe(n, **call, output_type="latent").images
    (pixels,) = pipe(n, **call, output_type="pt", return_dict=False)
    assert torch.allclose(pixels, (out[str(n)] + 1) / 2)
pictures = pipe(2, class_labels=1, generator=torch.Generator().manual_seed(0)).images
assert [(p.size, p.mode) for p in pictures] == [((8, 8), "L")] * 2, pictures
again = pipe(2, class_labels=[1, 1], generator=torch.Generator().manual_seed(0)).images
assert [p.tobytes() for p in pictures] == [p.tobytes() for p in again]
for wrong in ([3], [-1], [0, 1, 2]):
    try:
        pipe(2, class_labels=wrong)
        raise SystemExit(f"{wrong} went through")
    except ValueError as e:
        assert "numbers from 0 to 2" in str(e), e
try:
    pipe.to(torch.float16)
    raise SystemExit("float16 went through")
except ValueError as e:
    assert "float32" in str(e), e
save_file(out, made)
"""


def test_a_generator_as_a_pipeline(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    path = saved(tmp_path / "m.safetensors")
    done = export(str(path), "diffusers", tmp_path / "pipe")
    assert done.difference <= 1e-6
    assert done.bytes == sum(p.stat().st_size for p in done.path.rglob("*") if p.is_file())
    given = {5: inputs(5), 1: inputs(1)}
    flat = {f"{name}{n}": v for n, each in given.items() for name, v in each.items()}
    safetensors.torch.save_file(flat, tmp_path / "given")
    own = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    elsewhere(PIPE, done.path, tmp_path / "given", tmp_path / "made", **own)
    found = safetensors.torch.load_file(tmp_path / "made")
    for n, each in given.items():
        wanted = edm(path, 2.5 * each["z"], torch.tensor(2.5), each["labels"]).clamp(-1, 1)
        torch.testing.assert_close(found[str(n)], wanted, rtol=0, atol=5e-6)
    assert json.loads((done.path / "gentk.json").read_text())["licence"] == "Apache-2.0"


def ddpm(path: Path, **changes: Any) -> Path:
    settings = {
        "net": DDPM,
        "process": DISCRETE,
        "predicts": "eps",
        "shape": (3, 8, 8),
        "classes": 0,
        "inputs": TIMESTEPS,
    }
    return saved(path, "denoiser", **(settings | changes))


@pytest.mark.parametrize("predicts", ["eps", "v", "x0"])
def test_a_ddpm_is_a_pipeline_of_diffusers_own(tmp_path: Path, predicts: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    process = schema.Discrete(name="discrete", schedule="scaled-linear" if predicts == "v" else "linear")
    path = ddpm(tmp_path / "m.safetensors", predicts=predicts, process=process)
    done = export(str(path), "diffusers", tmp_path / "pipe")
    assert done.difference <= 1e-4
    diffusers.utils.logging.disable_progress_bar()
    pipe = diffusers.DiffusionPipeline.from_pretrained(done.path, low_cpu_mem_usage=False)
    assert type(pipe) is diffusers.DDPMPipeline
    state = pipe.unet.state_dict()
    assert state.keys() == network(path).state_dict().keys()
    assert all(torch.equal(state[k], v) for k, v in network(path).state_dict().items())
    x, k = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 770])
    with torch.no_grad():
        torch.testing.assert_close(pipe.unet(x, k).sample, network(path)(x, k.float(), None), rtol=0, atol=1e-5)
    t = torch.arange(1, 1001, dtype=torch.float64)
    ours = schedules.build(process)
    torch.testing.assert_close(pipe.scheduler.alphas_cumprod.double(), ours.alpha(t) ** 2, rtol=1e-4, atol=0)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(1, num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda p: saved(p, "denoiser"), "a denoiser by `unet` has no network and scheduler there"),
        (lambda p: saved(p, net=MLP, shape=(2,)), r"its samples have shape \(2,\)"),
        (lambda p: ddpm(p, inputs={}), "does not take timesteps"),
        (lambda p: ddpm(p, process=VP), "does not take timesteps"),
        (lambda p: ddpm(p, predicts="flow"), "no scheduler there reads what it predicts, `flow`"),
        (lambda p: ddpm(p, net=DDPM.model_copy(update={"multipliers": (2, 2)})), "embeds time"),
        (
            lambda p: ddpm(p, process=DISCRETE.model_copy(update={"data_scale": 0.5})),
            "does not take timesteps",
        ),
    ],
)
def test_what_diffusers_has_no_form_for(tmp_path: Path, made: Any, why: str) -> None:
    path = made(tmp_path / "m.safetensors")
    with pytest.raises(RecipeError, match=why) as failure:
        export(str(path), "diffusers", tmp_path / "pipe")
    assert failure.value.hint == "these work: safetensors, torch-export, onnx"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors"]


# --- what an export refuses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "mistake"),
    [("torch-export", m) for m in ("scale", "level", "label", "clamp", "nan")] + [("onnx", "label")],
)
def test_an_export_that_computes_something_else_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, mistake: str
) -> None:
    """The built-in check sees the mistakes that such an export invites, and leaves what stood there before."""
    if form == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")

    def forward(self: Any, z: Tensor, labels: Tensor) -> Tensor:
        scale = 1.0 if mistake == "scale" else self.scale
        t = 1.1 * self.t if mistake == "level" else self.t
        x: Tensor = self.denoiser(scale * z, t, 0 * labels if mistake == "label" else labels)
        if mistake == "nan":
            return x * torch.nan
        return x  # not clamped

    monkeypatch.setattr(program.Generate, "forward", forward)
    out = tmp_path / f"m{exporting.FORMATS[form].suffix}"
    out.write_text("before")
    path = saved(tmp_path / "m.safetensors", **({} if mistake == "clamp" else {"net": MLP, "shape": (2,)}))
    with pytest.raises(RunFailed, match=r"loaded again it differs by .* nothing was written"):
        export(str(path), form, out, force=True)
    assert out.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([out.name, path.name])


def test_a_classifier_is_not_exported(tmp_path: Path) -> None:
    for form, place in exporting.FORMATS.items():
        with pytest.raises(RecipeError, match="is a classifier"):
            export("classifier-digits", form, tmp_path / f"c{place.suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_weights(tmp_path: Path) -> None:
    (tmp_path / "run" / "export").mkdir(parents=True)
    with pytest.raises(MissingAsset, match="no weights in export/"):
        export(str(tmp_path / "run"), "torch-export", tmp_path / "m.pt2")


def test_where_an_export_may_go(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", net=MLP, shape=(2,))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "old.safetensors").write_text("old")
    cases = [
        ("safetensors", "m.bin", {}, "must end in .safetensors"),
        ("safetensors", "old.safetensors", {}, "exists"),
        ("safetensors", "m.safetensors", {"force": True}, "is the model itself"),
        ("diffusers", "folder", {"force": True}, "is a folder that gentk did not export"),
        ("diffusers", "file", {"force": True}, "is a file"),
        ("torch-export", "m.pt2", {"dtype": "float16"}, "--dtype is for safetensors"),
        ("safetensors", "x.safetensors", {"dtype": "flaot16"}, "did you mean `float16`"),
        ("torch-exprot", "x.pt2", {}, "no such format; did you mean `torch-export`"),
    ]
    for form, name, how, why in cases:
        with pytest.raises(RecipeError, match=why) as failure:
            export(str(path), form, tmp_path / name, **how)
        assert failure.value.hint or "dtype" in how
    assert (tmp_path / "old.safetensors").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 4
    done = export(str(path), "safetensors", tmp_path / "old.safetensors", force=True)
    assert done.path.read_bytes() == path.read_bytes()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", net=MLP, shape=(2,))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match=r"cannot be written: (Not a directory|File exists)") as failure:
        export(str(path), "safetensors", tmp_path / "file" / "c.safetensors")
    assert "--out" in failure.value.hint


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("form", ["safetensors", "torch-export"])
def test_a_folder_without_permission(tmp_path: Path, form: str) -> None:
    path = saved(tmp_path / "m.safetensors", net=MLP, shape=(2,))
    (tmp_path / "locked").mkdir(mode=0o555)
    with pytest.raises(RunFailed, match="cannot be written: Permission denied"):
        export(str(path), form, tmp_path / "locked" / f"c{exporting.FORMATS[form].suffix}")


def test_a_folder_is_replaced_whole_or_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With force, a folder of an earlier export goes only when the new one stands; else it stays as it was."""
    pytest.importorskip("diffusers")
    from gentk.engine.exporting import ddpm_pipeline

    path, out = ddpm(tmp_path / "m.safetensors"), tmp_path / "pipe"
    export(str(path), "diffusers", out)
    (out / "stale").write_text("")
    with monkeypatch.context() as patch:
        patch.setattr(ddpm_pipeline, "_difference", lambda *_: float("nan"))
        with pytest.raises(RunFailed, match="differs by nan"):
            export(str(path), "diffusers", out, force=True)
    assert (out / "stale").exists()
    whole = Path.replace
    for stop in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        with monkeypatch.context() as patch:

            def replace(self: Path, target: Path, stop: BaseException = stop) -> Path:
                if target == out and ".old." not in self.name:
                    raise stop
                return whole(self, target)

            patch.setattr(Path, "replace", replace)
            with pytest.raises((RunFailed, KeyboardInterrupt)):
                export(str(path), "diffusers", out, force=True)
        assert (out / "stale").exists()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "pipe"]
    export(str(path), "diffusers", out, force=True)
    assert not (out / "stale").exists()
    assert (out / "unet" / "config.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "pipe"]
