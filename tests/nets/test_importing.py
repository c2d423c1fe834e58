"""Published formats become our files: what the imported denoiser computes is the source's own formula."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from gentk import nets
from gentk.errors import GentkError, MissingAsset, RecipeError
from gentk.nets import importing, keymaps
from gentk.nets.importing.settings import Settings
from gentk.processes import models
from gentk.processes.denoiser import Denoiser, at_sigma
from gentk.recipe import schema, teachers
from gentk.recipe.stamp import read_header
from tests.nets import edm_files
from tests.nets.formula import fill, numbers, weight

CPU = torch.device("cpu")
KWARGS: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 10,
    "use_fp16": False,
    "model_type": "SongUNet",
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "augment_dim": 9,
    "dropout": 0.13,
}
SIGMAS = {"sigma_min": 0, "sigma_max": math.inf, "sigma_data": 0.5}
VP = {"beta_d": 19.9, "beta_min": 0.1, "M": 1000, "epsilon_t": 1e-5}
VE = {"sigma_min": 0.02, "sigma_max": 100}
TOLERANCE = 2e-5  # of the largest value: float32 networks, float64 coefficients rounded to float32


def network(section: Any, shape: tuple[int, ...], classes: int = 0) -> nn.Module:
    net = nets.build(section, shape=shape, classes=classes).eval()
    net.load_state_dict(fill(net.state_dict()))
    return net


def edm_network(kwargs: dict[str, Any] = KWARGS) -> nn.Module:
    section, shape, classes = keymaps.edm_section(kwargs)
    return network(section, shape, classes)


def edm_file(
    path: Path, name: str = "EDMPrecond", kwargs: dict[str, Any] = KWARGS, drop: str = "", **attributes: Any
) -> Path:
    state = {f"model.{k}": v for k, v in edm_network(kwargs).state_dict().items() if k != drop}
    ema = edm_files.network(state, name, kwargs, **(attributes or SIGMAS))
    content = {"ema": ema, "loss_fn": edm_files.Persistent("EDMLoss", {"P_mean": -1.2}), "augment_pipe": None}
    return edm_files.write(path, {**content, "dataset_kwargs": {"path": "digits.zip"}})


def imported(source: Path, form: str, out: Path, data: str | None = None, **values: Any) -> Denoiser:
    settings = {k.replace("__", "."): v for k, v in values.items()}
    found = importing.read(source, form, settings, data)
    importing.save(found, out, data=data or "unnamed", licence="MIT", origin={"source": "x", "sha256": "0" * 64})
    net = models.load(str(out), kinds=("denoiser",), where=CPU).net
    assert isinstance(net, Denoiser)
    return net


def gap(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


@torch.no_grad()
def agrees(
    denoiser: Denoiser, formula: Callable[[Tensor, float], Tensor], shape: tuple[int, ...], *wrong: Any, **cond: Any
) -> None:
    """x0 from x = x0 + s eps at noise levels across the range; each wrong formula is off at some level."""
    levels = (0.05, 0.5, 3.0, 30.0)
    worst = [0.0] * len(wrong)
    for s in levels:
        x = 2 * s * numbers(f"x{s}", (2, *shape)) + numbers("x0", (2, *shape))
        got = at_sigma(denoiser, x, torch.tensor(s, dtype=torch.float64), **cond)
        assert gap(got, formula(x, s)) < TOLERANCE, s
        worst = [max(w, gap(got, f(x, s))) for w, f in zip(worst, wrong, strict=True)]
    assert all(w > 100 * TOLERANCE for w in worst), worst


def vp_time(s: float) -> float:
    return (math.sqrt(0.1**2 + 2 * 19.9 * math.log1p(s * s)) - 0.1) / 19.9


def labels(value: float) -> Tensor:
    return torch.full((2,), value)


COND = torch.tensor([3, 7])


def edm_formula(net: nn.Module, factor: float = 0.25, sd: float = 0.5) -> Callable[[Tensor, float], Tensor]:
    def denoise(x: Tensor, s: float) -> Tensor:
        root = math.sqrt(s * s + sd * sd)
        out = net(x / root, labels(factor * math.log(s)), COND)
        return sd * sd / root**2 * x + s * sd / root * out

    return denoise


def vp_formula(net: nn.Module, sign: float = -1, steps: float = 999) -> Callable[[Tensor, float], Tensor]:
    return lambda x, s: x + sign * s * net(x / math.sqrt(1 + s * s), labels(steps * vp_time(s)), COND)


def ve_formula(net: nn.Module, sign: float = 1, half: float = 2) -> Callable[[Tensor, float], Tensor]:
    return lambda x, s: x + sign * s * net(x, labels(math.log(s / half)), COND)


def test_edm(tmp_path: Path) -> None:
    denoiser = imported(edm_file(tmp_path / "m.pkl"), "edm", tmp_path / "m.safetensors", "digits")
    net = edm_network()
    wrong = edm_formula(net, factor=0.5), edm_formula(net, sd=1.0), vp_formula(net), ve_formula(net)
    agrees(denoiser, edm_formula(net), (1, 8, 8), *wrong, cond=COND)
    header = read_header(tmp_path / "m.safetensors")
    assert header["kind"] == "denoiser"
    assert header["process"] == {"name": "ve", "sigma_min": 0.002, "sigma_max": 80.0}
    assert header["predicts"] == "edm"
    assert header["data"]["shape"] == [1, 8, 8]
    assert header["data"]["classes"] == 10
    assert header["data"]["range"] == [-1, 1]
    assert header["data"]["section"]["name"] == "digits"
    assert header["label_dropout"] == 0
    assert (header["licence"], header["source"], header["sha256"]) == ("MIT", "x", "0" * 64)
    told = header["imported"]
    assert told["class"] == "EDMPrecond"
    assert told["init_kwargs"] == KWARGS
    assert told["attributes"]["sigma_max"] == "inf"


def test_edm_baselines(tmp_path: Path) -> None:
    net = edm_network()
    out = tmp_path / "m.safetensors"
    denoiser = imported(edm_file(tmp_path / "vp.pkl", "VPPrecond", **VP), "edm", out)
    wrong = vp_formula(net, sign=1), vp_formula(net, steps=1000), edm_formula(net)
    agrees(denoiser, vp_formula(net), (1, 8, 8), *wrong, cond=COND)
    process = read_header(out)["process"]
    assert process == {"name": "vp", "beta_min": 0.1, "beta_max": pytest.approx(20.0), "t_min": 1e-5}
    denoiser = imported(edm_file(tmp_path / "ve.pkl", "VEPrecond", **VE), "edm", out)
    wrong = ve_formula(net, sign=-1), ve_formula(net, half=1), edm_formula(net)
    agrees(denoiser, ve_formula(net), (1, 8, 8), *wrong, cond=COND)
    assert read_header(out)["process"] == {"name": "ve", "sigma_min": 0.02, "sigma_max": 100.0}


def test_edm_adm(tmp_path: Path) -> None:
    adm = {k: v for k, v in KWARGS.items() if k not in ("model_type", "augment_dim")}
    adm |= {"model_type": "DhariwalUNet", "model_channels": 64, "label_dropout": 0.1}
    net = edm_network(adm)
    denoiser = imported(edm_file(tmp_path / "m.pkl", kwargs=adm), "edm", tmp_path / "m.safetensors")
    agrees(denoiser, edm_formula(net), (1, 8, 8), edm_formula(net, sd=1.0), cond=COND)
    assert read_header(tmp_path / "m.safetensors")["label_dropout"] == 0.1


SONG = {"name": "songunet", "width": 16, "multipliers": (1, 2), "blocks": 2, "attention": (8,)}
SETTINGS = {"net__multipliers": [1, 2], "net__blocks": 2, "net__attention": [8], "size": 16}
FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "published_unets.json").read_text())


def checkpoint(path: Path, kind: str, **changes: Any) -> tuple[Path, dict[str, Tensor]]:
    """A training checkpoint as score_sde writes it, with a learning rate of numpy's; the file, and its EMA by name."""
    state = {key: weight(key, shape) for key, shape in FIXTURE["score_sde"][kind]["state"]}
    shadow = [v for k, v in state.items() if not k.endswith(("sigmas", "all_modules.0.W"))]
    raw = {f"module.{k}": v if k.endswith(("sigmas", "all_modules.0.W")) else 7 + v for k, v in state.items()}
    content = {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": np.float64(2e-4)}]},
        "model": raw,
        "ema": {"decay": 0.9999, "num_updates": 5, "shadow_params": shadow},
        "step": 1234,
    }
    torch.save({**content, **changes}, path)
    return path, state


def score_sde_net(kind: str, state: dict[str, Tensor]) -> nn.Module:
    extra: dict[str, Any] = {}
    if kind == "ncsnpp":
        extra = {"embedding": "fourier", "encoder": "residual", "taps": (1.0, 3.0, 3.0, 1.0)}
    net = nets.build(schema.SongUNet(**SONG, **extra), shape=(3, 16, 16), classes=0).eval()
    net.load_state_dict(keymaps.score_sde(state, net))
    return net


def unconditional(formula: Callable[..., Any], net: nn.Module, **how: Any) -> Callable[[Tensor, float], Tensor]:
    return formula(lambda x, t, _: net(x, t), **how)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["ddpmpp", "ncsnpp"])
def test_score_sde_by_its_moving_average(kind: str, tmp_path: Path) -> None:
    path, state = checkpoint(tmp_path / "c.pth", kind)
    denoiser = imported(path, "score-sde", tmp_path / "m.safetensors", **SETTINGS)
    net = score_sde_net(kind, state)
    formula = vp_formula if kind == "ddpmpp" else ve_formula
    wrong = unconditional(formula, net, sign=-1 if kind == "ncsnpp" else 1)
    agrees(denoiser, unconditional(formula, net), (3, 16, 16), wrong)
    assert read_header(tmp_path / "m.safetensors")["imported"] == {"format": "score-sde", "step": 1234}


def test_rectified_flow(tmp_path: Path) -> None:
    """Their velocity is that of data - noise at time 1 - t, labelled 999 times that."""
    path, state = checkpoint(tmp_path / "c.pth", "ddpmpp")
    denoiser = imported(path, "rectified-flow", tmp_path / "m.safetensors", **SETTINGS)
    net = score_sde_net("ddpmpp", state)

    def formula(sign: float = 1, turned: bool = True, steps: float = 999) -> Callable[[Tensor, float], Tensor]:
        def denoise(x: Tensor, s: float) -> Tensor:
            t = s / (1 + s)  # x_t = (1 - t) x0 + t eps, and x = x_t / (1 - t)
            there = 1 - t if turned else t
            return (1 - t) * x + sign * t * net((1 - t) * x, labels(steps * there))

        return denoise

    wrong = formula(sign=-1), formula(turned=False), formula(steps=1000)
    agrees(denoiser, formula(), (3, 16, 16), *wrong)
    assert read_header(tmp_path / "m.safetensors")["process"]["t_max"] == 0.999


def abar(k: int) -> float:
    return float(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[k])


@torch.no_grad()
def steps_agree(denoiser: Denoiser, eps: Callable[[Tensor, int], Tensor], shape: tuple[int, ...]) -> None:
    """At timesteps x0 = (x - sqrt(1 - abar) eps(x, k)) / sqrt(abar); the network asked for k + 1 is another one."""
    for k in (0, 10, 500, 999):
        x, root = 2 * numbers(f"x{k}", (2, *shape)), math.sqrt(abar(k))
        got = denoiser(x, torch.tensor(float(k + 1), dtype=torch.float64))
        assert gap(got, (x - math.sqrt(1 - abar(k)) * eps(x, k)) / root) < TOLERANCE
        if k in (10, 500):
            assert gap(got, (x - math.sqrt(1 - abar(k)) * eps(x, k + 1)) / root) > 20 * TOLERANCE


@pytest.mark.parametrize("order", ["legacy", "new"])
def test_guided_diffusion(order: str, tmp_path: Path) -> None:
    case = FIXTURE["guided_diffusion"][order]
    state = {key: weight(key, shape) for key, shape in case["state"]}
    torch.save(state, tmp_path / "m.pt")
    values = {"net__multipliers": [1, 1], "net__blocks": 1, "net__attention": [8], "size": 16}
    out = tmp_path / "m.safetensors"
    denoiser = imported(tmp_path / "m.pt", "guided-diffusion", out, attention_order=order, **values)
    header = read_header(out)
    assert header["net"]["learned_sigma"] == case["learned_sigma"]
    assert header["data"]["classes"] == case["classes"]
    section = schema.Adm(
        name="adm", width=128, multipliers=(1, 1), blocks=1, attention=(8,), learned_sigma=case["learned_sigma"]
    )
    net = nets.build(section, shape=(3, 16, 16), classes=case["classes"]).eval()
    net.load_state_dict(keymaps.guided_diffusion(state, net, order))  # type: ignore[arg-type]
    steps_agree(denoiser, lambda x, k: net(x, labels(float(k))), (3, 16, 16))


@pytest.mark.parametrize("layout", ["pipeline", "flat"])
@pytest.mark.parametrize("target", ["epsilon", "v_prediction", "sample"])
def test_diffusers_against_diffusers(layout: str, target: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(**UNET).eval()
    scheduler = diffusers.DDPMScheduler(1000, prediction_type=target, clip_sample=False)
    folder = tmp_path / "model"
    theirs.save_pretrained(folder / "unet" if layout == "pipeline" else folder)
    scheduler.save_pretrained(folder / "scheduler" if layout == "pipeline" else folder)
    denoiser = imported(folder, "diffusers" if layout == "flat" else "ddpm", tmp_path / "m.safetensors")
    for k in (0, 10, 500, 999):
        x = 2 * numbers(f"x{k}", (2, 3, 16, 16))
        with torch.no_grad():
            step = scheduler.step(theirs(x, k).sample, k, x, generator=torch.Generator().manual_seed(0))
            got = denoiser(x, torch.tensor(float(k + 1), dtype=torch.float64))
        assert gap(got, step.pred_original_sample) < 1e-4  # their coefficients are float32
    header = read_header(tmp_path / "m.safetensors")
    assert header["net"]["attention"] == [8]
    assert header["predicts"] == {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}[target]


UNET = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "norm_eps": 1e-6,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "attention_head_dim": None,
}


def folder_of(place: Path, config: dict[str, Any], scheduler: dict[str, Any] | None) -> Path:
    """A folder whose weights nobody comes to read."""
    place.mkdir()
    (place / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", "in_channels": 3, **config}))
    safetensors.torch.save_file({"a": torch.ones(1)}, place / "diffusion_pytorch_model.safetensors")
    if scheduler is not None:
        (place / "scheduler_config.json").write_text(json.dumps(scheduler))
    return place


@pytest.mark.parametrize(
    ("config", "scheduler", "kind", "text"),
    [
        ({"_class_name": "UNet2DConditionModel"}, {}, GentkError, "a UNet2DConditionModel"),
        ({"flip_sin_to_cos": True}, {}, GentkError, "flip_sin_to_cos is True, not False"),
        ({"class_embed_type": "timestep"}, {}, GentkError, "class_embed_type is 'timestep', not None"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D"]}, {}, GentkError, "SkipDownBlock2D in it"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, {}, GentkError, "do not mirror"),
        ({"block_out_channels": [32, 48]}, {}, GentkError, r"3 to 3 channels through \[32, 48\]"),
        ({"out_channels": 6}, {}, GentkError, "3 to 6 channels"),
        ({"sample_size": None}, {}, GentkError, "without a usable"),
        ({}, {"beta_schedule": "sigmoid"}, GentkError, "betas by `sigmoid`"),
        ({}, {"trained_betas": [0.1]}, GentkError, "of its own"),
        ({}, {"prediction_type": "flow"}, GentkError, "prediction_type `flow`"),
        ({}, None, RecipeError, "no scheduler_config.json"),
        ({}, {}, GentkError, "missing"),
    ],
)
def test_folders_of_another_form(
    config: dict[str, Any], scheduler: Any, kind: type[GentkError], text: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "m", {**UNET, **config}, scheduler)
    with pytest.raises(kind, match=text):
        importing.read(folder, "diffusers", {}, None)


def test_the_config_of_ddpm_cifar10_in_its_old_words(tmp_path: Path) -> None:
    """google/ddpm-cifar10-32 says `timesteps`, and nothing of keys that came later."""
    scheduler = {"_class_name": "GaussianDDPMScheduler", "timesteps": 900, "beta_end": 0.02, "beta_start": 0.0001}
    folder = folder_of(tmp_path / "m", UNET, scheduler)
    section, shape = importing._module("diffusers")._section(folder, json.loads((folder / "config.json").read_text()))
    net = network(section, shape)
    safetensors.torch.save_file(net.state_dict(), folder / "diffusion_pytorch_model.safetensors")
    assert importing.read(folder, "diffusers", {}, None).process == schema.Discrete(name="discrete", steps=900)


def test_folders_that_lack_files(tmp_path: Path) -> None:
    with pytest.raises(MissingAsset, match="no such folder"):
        importing.read(tmp_path / "m", "diffusers", {}, None)
    folder = folder_of(tmp_path / "m", UNET, {})
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.bin")
    with pytest.raises(MissingAsset, match=r"no diffusion_pytorch_model.safetensors .*\.bin files are pickles"):
        importing.read(folder, "diffusers", {}, None)
    (folder / "config.json").write_text("{")
    (folder / "diffusion_pytorch_model.bin").rename(folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(GentkError, match="cannot be read as JSON"):
        importing.read(folder, "diffusers", {}, None)
    (folder / "config.json").unlink()
    with pytest.raises(MissingAsset, match=r"no config\.json"):
        importing.read(folder, "diffusers", {}, None)


def test_noise_cnn(tmp_path: Path) -> None:
    section = schema.NoiseCnn(name="noise-cnn", widths=(4, 6), embedding=12)
    net = network(section, (1, 8, 8))
    safetensors.torch.save_file(net.state_dict(), tmp_path / "m.safetensors", {"license": "MIT", "T": "1000"})
    out = tmp_path / "out.safetensors"
    found = importing.read(tmp_path / "m.safetensors", "noise-cnn", {}, "digits")
    assert (found.licence, found.facts) == ("MIT", {"format": "noise-cnn", "T": "1000"})
    denoiser = imported(tmp_path / "m.safetensors", "noise-cnn", out, "digits")
    betas = [1e-4 + t / 1000 * (0.02 - 1e-4) for t in range(1001)]
    with torch.no_grad():
        for t in (1, 50, 1000):
            level = math.prod(1 - b for b in betas[: t + 1])
            z = 2 * numbers(f"z{t}", (2, 1, 8, 8))  # in their coordinates, images in [-0.5, 0.5]
            x0 = (z - math.sqrt(1 - level) * net(z, labels(t / 1000))) / math.sqrt(level)
            # ours are those of images in [-1, 1]: z = alpha x0 / 2 + sigma eps
            alpha, sigma = (f(torch.tensor(t + 1.0).double()) for f in (denoiser.process.alpha, denoiser.process.sigma))
            assert float(sigma / alpha) == pytest.approx(2 * math.sqrt(1 / level - 1), rel=1e-6)
            got = at_sigma(denoiser, z * 2 / math.sqrt(level), sigma / alpha)
            assert gap(got, 2 * x0) < 1e-4


def faulty(path: Path, form: str, text: str, kind: type[GentkError] = GentkError, **values: Any) -> None:
    with pytest.raises(kind, match=text) as failure:
        importing.read(path, form, {k.replace("__", "."): v for k, v in values.items()}, None)
    assert kind is RecipeError or str(failure.value).startswith(str(path))


def test_tensors_are_all_accounted_for(tmp_path: Path) -> None:
    faulty(edm_file(tmp_path / "m.pkl", drop="map_layer0.bias"), "edm", r"missing map_layer0\.bias")
    path = edm_file(tmp_path / "m.pkl", kwargs=KWARGS)
    ema = edm_files.network(
        {f"model.{k}": v for k, v in edm_network().state_dict().items()}, "EDMPrecond", {**KWARGS, "num_blocks": 2}
    )
    edm_files.write(path, {"ema": ema})
    faulty(path, "edm", r"missing enc\.8x8_block1.*and \d+ more")
    wide = edm_files.network(
        {f"model.{k}": v for k, v in edm_network().state_dict().items()}, "EDMPrecond", {**KWARGS, "model_channels": 32}
    )
    edm_files.write(path, {"ema": wide})
    faulty(path, "edm", r"has shape \(.*\), expected \(")
    extra = {f"model.{k}": v for k, v in edm_network().state_dict().items()} | {"model.extra.weight": torch.ones(2)}
    edm_files.write(path, {"ema": edm_files.network(extra, "EDMPrecond", KWARGS)})
    faulty(path, "edm", r"unexpected extra\.weight")
    path, _ = checkpoint(tmp_path / "c.pth", "ddpmpp")
    faulty(path, "score-sde", "missing|unexpected", net__multipliers=[1, 2], net__blocks=1, net__attention=[8], size=16)
    ema = {"shadow_params": [torch.ones(2)]}
    path, _ = checkpoint(tmp_path / "c.pth", "ddpmpp", ema=ema)
    faulty(path, "score-sde", "1 averages for", **SETTINGS)


def test_edm_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "m.pkl"
    faulty(edm_file(path, "iDDPMPrecond"), "edm", "preconditioner iDDPMPrecond: its labels are the nearest")
    faulty(edm_file(path, "MyPrecond"), "edm", "preconditioner MyPrecond: not known")
    faulty(edm_file(path, "VPPrecond", beta_d=19.9), "edm", "VPPrecond without beta_min, M, epsilon_t")
    faulty(edm_files.write(path, {"G": 1, "D": 2}), "edm", "no network under `ema` .* but the keys G, D")
    faulty(edm_files.write(path, [1]), "edm", "but a list")
    for key, value in {"num_blocks": "two", "channel_mult": 3, "img_channels": None, "label_dim": "x"}.items():
        faulty(edm_files.write(path, {"ema": edm_files.network({}, "EDMPrecond", {**KWARGS, key: value})}), "edm", ".")
    nameless = edm_files.Persistent("EDMPrecond", {"_init_args": (8,), "_init_kwargs": {}, "_modules": {}})
    faulty(edm_files.write(path, {"ema": nameless}), "edm", "does not keep its arguments by name")
    odd = edm_files.Persistent("EDMPrecond", {"_init_kwargs": {**KWARGS, "decoder_type": "skip"}, "_modules": {}})
    faulty(edm_files.write(path, {"ema": odd}), "edm", "decoder_type")
    faulty(edm_file(path), "score-sde", "not a checkpoint with .* but the keys ema, loss_fn")
    faulty(edm_file(path), "guided-diffusion", "not a state dict of guided-diffusion but the keys ema")


def test_damaged_files(tmp_path: Path) -> None:
    path = edm_file(tmp_path / "m.pkl")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    faulty(path, "edm", "broken off|damaged")
    path.write_bytes(b"<html>not found</html>")
    for form in ("edm", "score-sde", "rectified-flow", "guided-diffusion"):
        faulty(path, form, "a web page")
    faulty(path, "noise-cnn", "not a safetensors file")
    for form in teachers.FORMATS:
        faulty(tmp_path / "absent", form, "no such", MissingAsset)


def test_numbers_that_are_none(tmp_path: Path) -> None:
    state = {f"model.{k}": v.clone() for k, v in edm_network().state_dict().items()}
    state["model.map_layer1.bias"][3] = math.nan
    path = edm_files.write(tmp_path / "m.pkl", {"ema": edm_files.network(state, "EDMPrecond", KWARGS, **SIGMAS)})
    faulty(path, "edm", "`map_layer1.bias` holds NaN or infinity")


@pytest.mark.parametrize(("data", "text"), [("cifar10", r"shape \(1, 8, 8\), `cifar10` has \(3, 32, 32\)")])
def test_a_data_set_of_another_shape(data: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=text):
        importing.read(edm_file(tmp_path / "m.pkl"), "edm", {}, data)
    with pytest.raises(RecipeError, match="knows 7 classes, `digits` has 10"):
        importing.read(edm_file(tmp_path / "m.pkl", kwargs={**KWARGS, "label_dim": 7}), "edm", {}, "digits")
    assert importing.read(edm_file(tmp_path / "m.pkl"), "edm", {}, "my-own").shape == (1, 8, 8)


def test_settings(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path / "c.pth", "ddpmpp")
    faulty(path, "score-sde", "does not say how large its images are", RecipeError)
    faulty(path, "score-sde", "--set size=x: not a whole number", RecipeError, **SETTINGS | {"size": "x"})
    faulty(path, "score-sde", "--set net.blocks: input should be", RecipeError, **SETTINGS | {"net__blocks": "two"})
    faulty(
        path,
        "score-sde",
        "--set net.block: no setting .*did you mean `net.blocks`",
        RecipeError,
        **SETTINGS,
        net__block=2,
    )
    faulty(edm_file(tmp_path / "m.pkl"), "edm", "--set size: no setting of this format", RecipeError, size=8)
    faulty(path, "edn", "unknown format `edn`; did you mean `edm`", RecipeError)
    found = importing.read(
        path, "score-sde", {k.replace("__", "."): v for k, v in SETTINGS.items()} | {"process.beta_max": 15.0}, None
    )
    assert found.process == schema.VP(name="vp", beta_max=15.0)


def test_guided_diffusion_must_be_told_what_its_file_does_not_say(tmp_path: Path) -> None:
    state = {"input_blocks.0.0.weight": torch.ones(8, 3, 3, 3), "out.2.weight": torch.ones(6, 8, 3, 3)}
    torch.save(state, tmp_path / "m.pt")
    faulty(tmp_path / "m.pt", "guided-diffusion", "does not say how its attention is laid out", RecipeError, size=16)
    faulty(tmp_path / "m.pt", "guided-diffusion", "nor how it was noised", RecipeError, size=64, attention_order="new")
    faulty(tmp_path / "m.pt", "guided-diffusion", "not one of legacy, new", RecipeError, size=16, attention_order="old")


def test_rows_of_published_teachers() -> None:
    for row in teachers.TEACHERS:
        assert row.format in teachers.FORMATS
        assert row.licence
        assert row.note
        assert row.source.endswith(row.file)
        assert not row.fetchable or row.source.startswith("https://") or row.source.count("/") == 1
    assert len(teachers.BY_NAME) == len(teachers.TEACHERS)
    wanted = ("edm-cifar10", "edm-cifar10-cond", "edm-ffhq", "edm-afhqv2", "edm-imagenet64", "ddpm-cifar10")
    assert {*wanted, "rectified-flow-cifar10"} <= set(teachers.NAMES)


def test_the_rows_of_guided_diffusion_say_what_its_readme_says() -> None:
    """MODEL_FLAGS of openai/guided-diffusion: cosine betas and the new attention order at 64 pixels alone."""
    for size, order, schedule, known in ((64, "new", "cosine", (192, 3)), (256, "legacy", "linear", (256, 2))):
        told = Settings(teachers.BY_NAME[f"guided-diffusion-imagenet{size}"].settings, None)
        net = told.section(schema.Adm, "net", name="adm")
        assert (net.width, net.blocks, net.learned_sigma, net.attention) == (*known, True, (32, 16, 8))
        assert told.section(schema.Discrete, "process", name="discrete").schedule == schedule
        assert told.choice("attention_order", ("legacy", "new"), "") == order


def test_shapes_are_those_of_the_readers() -> None:
    from gentk import data

    digits = data.load(schema.Data(name="digits"), "train")
    assert teachers.SHAPES["digits"] == (digits.shape, digits.classes)
    assert {name for name in data.names() if ":" not in name} == set(teachers.SHAPES)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_shapes_of_data_on_disk(name: str) -> None:
    import os

    from gentk import data

    if not os.environ.get("GENTK_DATA"):
        pytest.skip("GENTK_DATA is not set")
    found = data.load(schema.Data(name=name), "test")
    assert teachers.SHAPES[name] == (found.shape, found.classes)


def test_the_mnist_noise_predictor(tmp_path: Path) -> None:
    """The published figure: an error of 0.0172 in eps on 2,000 test images, t uniform (data README, section 4)."""
    import os

    from gentk import data
    from gentk.processes.process import diffuse, from_x0

    root = os.environ.get("GENTK_DATA")
    source = Path(root or "") / "generative" / "mnist_ddpm_cnn.safetensors"
    if not root or not source.is_file():
        pytest.skip("GENTK_DATA is not set, or has no generative/mnist_ddpm_cnn.safetensors")
    denoiser = imported(source, "noise-cnn", tmp_path / "m.safetensors", "mnist")
    test = data.load(schema.Data(name="mnist"), "test")
    x0, _ = test.batch(torch.arange(500))
    gen = torch.Generator().manual_seed(0)
    t = torch.randint(2, 1002, (500,), generator=gen).double()
    eps = torch.randn(x0.shape, generator=gen)
    with torch.no_grad():
        x = diffuse(denoiser.process, x0, t, eps)
        error = (from_x0("eps", denoiser.process, x, t, denoiser(x, t)) - eps).square().mean()
    assert float(error) == pytest.approx(0.0172, rel=0.1)  # 500 images: about 3 % of standard error
