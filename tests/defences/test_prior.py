"""The denoiser as a purifier calls it: levels of z = 2 x - 1 + t eps in every process, without a label."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gentk import data
from gentk.defences import prior
from gentk.errors import RecipeError
from gentk.nets import importing
from gentk.processes import schedules
from gentk.processes.denoiser import Denoiser
from gentk.processes.models import Model, load
from gentk.recipe import schema
from tests.defences.testbed import digits
from tests.tasks.toys import SIGMA_DATA, Gauss

CPU = torch.device("cpu")
T = torch.float64
PROCESSES: dict[str, Any] = {
    "ve": schema.VE(name="ve"),
    "vp": schema.VP(name="vp"),
    "cosine": schema.Cosine(name="cosine"),
    "flow": schema.RectifiedFlow(name="rectified-flow"),
    "discrete": schema.Discrete(name="discrete"),
    "half": schema.Discrete(name="discrete", data_scale=0.5),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_one_level_means_the_same_in_every_process(name: str) -> None:
    """Trap 2: the exact denoiser of N(0.3, 0.8^2) at z + t eps, t one number or one per row, in float64."""
    mean, std = torch.tensor([0.3], dtype=T), torch.tensor([0.8], dtype=T)
    process = schedules.build(PROCESSES[name])
    denoise = prior.of(Denoiser(Gauss(mean, std).double(), process, "x0", SIGMA_DATA))
    z = torch.linspace(-2, 2, 5, dtype=T)[:, None]
    for t in (0.2, 0.5, 1.5):
        exact = 0.3 + 0.64 / (0.64 + t**2) * (z - 0.3)
        torch.testing.assert_close(denoise(z, t), exact, rtol=0, atol=1e-6)  # the label, ln(t) / 4, is in float32
        torch.testing.assert_close(denoise(z, torch.full((5,), t, dtype=T)), exact, rtol=0, atol=1e-6)
    with torch.inference_mode():
        denoise(z, 0.7)
    at = z.clone().requires_grad_()  # what was first asked without gradients has one later
    (g,) = torch.autograd.grad(denoise(at, 0.7).sum(), at)
    torch.testing.assert_close(g, torch.full_like(z, 0.64 / (0.64 + 0.49)), rtol=0, atol=1e-6)
    if name != "ve":  # the known mistake: z taken for the process's own sample
        s = process.t_of(torch.tensor(1.5, dtype=T))
        wrong = Denoiser(Gauss(mean, std).double(), process, "x0", SIGMA_DATA)(z, s)
        assert float((wrong - (0.3 + 0.64 / (0.64 + 2.25) * (z - 0.3))).detach().abs().max()) > 0.05


@pytest.mark.parametrize("name", ["edm-digits", "flow-digits"])
def test_shipped_models_at_both_ends(name: str) -> None:
    """Their input at t -> 0, the data's mean at a large t; at 0.5 closer to the clean digit than what came in."""
    model = load(name, kinds=("denoiser",), where=CPU)
    assert isinstance(model.net, Denoiser)
    denoise, z = prior.of(model.net), 2 * digits()[2][:64] - 1
    gen = torch.Generator().manual_seed(0)
    eps = torch.randn(z.shape, generator=gen)
    with torch.no_grad():
        assert float((denoise(z, 0.004) - z).abs().mean()) < 0.02
        mean = (2 * digits()[0] - 1).mean(0)
        assert float((denoise(z + 40 * eps, 40.0).mean(0) - mean).abs().mean()) < 0.1
        error = float((denoise(z + 0.5 * eps, 0.5) - z).pow(2).mean().sqrt())
        assert error < 0.25
        out_of_range = float((denoise((z + 1) / 2 + 0.5 * eps, 0.5) - (z + 1) / 2).pow(2).mean().sqrt())
        assert out_of_range > 1.5 * error  # trap 1: [0, 1] for [-1, 1]


class Spy(nn.Module):
    """A network that remembers the labels that it was asked with."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: list[Tensor | None] = []

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        self.labels.append(cond)
        return x


def test_no_label_is_ever_told() -> None:
    """Trap 11 of Purify++: the true label would be half of the answer."""
    spy = Spy()
    prior.of(Denoiser(spy, schedules.build(PROCESSES["ve"]), "x0", 0.5))(torch.zeros(2, 1, 8, 8), 0.5)
    assert spy.labels == [None]
    model = load("flow-digits", kinds=("denoiser",), where=CPU)
    prior.unlabelled(model)
    assert prior.facts(model) == {"name": "flow-digits", "process": "rectified-flow", "label": "none", "range": [-1, 1]}
    always = Model("always", model.net, model.header | {"label_dropout": 0.0})
    with pytest.raises(RecipeError, match="has always seen its labels"):
        prior.unlabelled(always)
    prior.unlabelled(Model("none", model.net, {"data": {"shape": (1, 8, 8), "classes": 0}, "label_dropout": 0.0}))


def test_levels_outside_of_the_process() -> None:
    process = schedules.build(PROCESSES["ve"])
    prior.within(process, {"method.t_star": 0.5, "method.t_min": 0.002})
    for level in (0.001, 81.0):
        with pytest.raises(RecipeError, match=r"method\.t_star: noise level .* outside of .* 0\.002 to 80"):
            prior.within(process, {"method.t_star": level})


@pytest.mark.skipif("GENTK_DATA" not in os.environ, reason="GENTK_DATA is not set: no foreign model here")
def test_the_foreign_mnist_model_denoises(tmp_path: Path) -> None:
    """`mnist_ddpm_cnn` learned images in [-0.5, 0.5] with discrete times: asked in [-1, 1] it must still denoise."""
    source = Path(os.environ["GENTK_DATA"]) / "generative" / "mnist_ddpm_cnn.safetensors"
    found = importing.read(source, "noise-cnn", {}, "mnist")
    importing.save(found, path := tmp_path / "m.safetensors", data="mnist", licence="MIT", origin={})
    model = load(str(path), kinds=("denoiser",), where=CPU)
    assert isinstance(model.net, Denoiser)
    z = data.load(schema.Data(name="mnist"), "test").batch(torch.arange(16))[0]
    eps = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        error = float((prior.of(model.net)(z + 0.5 * eps, 0.5) - z).pow(2).mean().sqrt())
    assert error < 0.2  # 0.5 went in
