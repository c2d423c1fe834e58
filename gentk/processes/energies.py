"""Energies by name, run or file, called as `energy(x, t=None)` -> U (B,); and as the denoisers that they imply."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from gentk.errors import RecipeError
from gentk.nets import published_energy
from gentk.nets.energy import Energy, UNetBody
from gentk.processes import schedules
from gentk.processes.denoiser import Denoiser
from gentk.processes.models import Model, load
from gentk.processes.process import expand
from gentk.recipe import schema


def load_energy(ref: str, where: torch.device | str = "cpu") -> Model:
    """The energy that `ref` stands for: a run of `train-ebm`, a file of one, or a published energy by its name.

    The model's `net` maps samples (B, *shape), images in [-1, 1], to U (B,), low where the data are; its density is
    proportional to exp(-U). Raises as `models.load`, and MissingAsset where a published energy's file is absent.
    """
    if ref in published_energy.NAMES and not Path(ref).exists():
        net = published_energy.load(ref).to(where)
        header = {
            "kind": "energy",
            "data": {"name": "mnist", "shape": [1, 28, 28], "classes": 0},
            "levels": None,
            "published": ref,
        }
        return Model(ref, net, header)
    return load(ref, kinds=("energy",), where=torch.device(where))


class EnergyDenoiser(Denoiser):
    """x0 = x - t^2 grad U(x, t), Tweedie's formula for the density exp(-U(., t)): the exact denoiser of an energy.

    Differentiable in x once more where x has a graph. Between the energy's levels only, which its process ends at.
    """

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """x (B, ...) with noise of deviation t, () or (B,) -> (B, ...); `cond` is not asked."""
        kept = x.requires_grad and torch.is_grad_enabled()
        t = t.to(x.device).expand(len(x))
        with torch.enable_grad():  # the gradient is the model, whoever only looks at its answer
            here = x.to(next(self.net.parameters(), x).dtype)
            here = here if kept else here.detach().requires_grad_()
            (grad,) = torch.autograd.grad(self.net(here, t.to(here.dtype)).sum(), here, create_graph=kept)
        return x - expand(t.square(), x) * grad.to(x.dtype)


def load_denoiser(ref: str, *, kinds: tuple[str, ...] = ("denoiser",), where: torch.device) -> Model:
    """`models.load`, to which a time-dependent energy is the denoiser that it implies. Raises as both do."""
    model = load(ref, kinds=(*kinds, "energy"), where=where)
    return denoising(model) if model.header["kind"] == "energy" else model


def denoising(model: Model) -> Model:
    """A time-dependent energy as its exact denoiser, `EnergyDenoiser`. Raises RecipeError for a static one."""
    energy = model.net
    if not isinstance(energy, Energy) or energy.levels is None:
        raise RecipeError(
            f"`{model.name}` is a static energy: without noise levels it has no denoiser",
            hint=f"gentk sample mala --model {model.name}; or train one with method.levels",
        )
    section, sd = _process(energy), float(energy.sd)
    header = model.header | {
        "kind": "denoiser",
        "process": section.model_dump(mode="json"),
        "predicts": "x0",
        "sigma_data": sd,
    }
    return Model(model.name, EnergyDenoiser(energy, schedules.build(section), "x0", sd).eval(), header)


def within(model: Model) -> Model:
    """The U-Net inside an `energy-unet` as a denoiser in EDM's form: what learners start from.

    U = <x - c, x - D> / 2t^2: D is the exact denoiser of Gaussian data, where it is linear, and near it elsewhere, for
    a forward pass instead of a gradient. Raises RecipeError for another energy.
    """
    energy = model.net
    if not isinstance(energy, Energy) or not isinstance(energy.body, UNetBody):
        raise RecipeError(
            f"`{model.name}` is an energy whose network is no `energy-unet`: nothing in it is a denoiser to start from",
            hint="gentk train-ebm dcd --set net.name=energy-unet, as its recipes of images have it",
        )
    section, sd = _process(energy), float(energy.sd)
    inputs = schema.Inputs(offset=-math.log(sd) / 4, centre=tuple(energy.centre.flatten().tolist()))
    net = {k: v for k, v in model.header["net"].items() if k in ("width", "multipliers", "blocks", "attention")}
    header = model.header | {
        "kind": "denoiser",
        "net": {"name": "unet", **net},
        "process": section.model_dump(mode="json"),
        "predicts": "edm",
        "sigma_data": sd,
        "inputs": inputs.model_dump(mode="json"),
    }
    return Model(model.name, Denoiser(energy.body.net, schedules.build(section), "edm", sd, inputs).eval(), header)


def _process(energy: Energy) -> schema.VE:
    assert energy.levels is not None
    low, high = energy.levels
    return schema.VE(name="ve", sigma_min=low, sigma_max=high)
