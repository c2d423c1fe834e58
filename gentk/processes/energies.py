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
        t = t.to(x).expand(len(x))
        with torch.enable_grad():  # the gradient is the model, whoever only looks at its answer
            here = x if kept else x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(self.net(here, t).sum(), here, create_graph=kept)
        return x - expand(t.square(), x) * grad


def denoising(model: Model) -> tuple[Model, Denoiser]:
    """A time-dependent `energy-unet` as the model of its denoiser, and a U-Net in EDM's form to start learners from.

    The U-Net is the one inside the energy, U = <x - c, x - D> / 2t^2: its D is the exact denoiser of Gaussian data,
    where D is linear, and near it elsewhere, for a forward pass instead of a gradient. The header is that of the U-Net,
    as what starts from it will be saved. Raises RecipeError for another energy.
    """
    energy = model.net
    if not isinstance(energy, Energy) or energy.levels is None or not isinstance(energy.body, UNetBody):
        raise RecipeError(
            f"`{model.name}` is an energy without noise levels, or whose network is no `energy-unet`: it has no "
            "denoiser to learn from",
            hint="gentk train-ebm dcd --set net.name=energy-unet, as its recipes of images have it",
        )
    low, high = energy.levels
    section, sd = schema.VE(name="ve", sigma_min=low, sigma_max=high), float(energy.sd)
    process = schedules.build(section)
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
    exact = EnergyDenoiser(energy, process, "x0", sd).eval()
    return Model(model.name, exact, header), Denoiser(energy.body.net, process, "edm", sd, inputs)
