"""Laws of the noise level for training, drawn in process time."""

from __future__ import annotations

import torch
from torch import Tensor

from gentk.processes.process import Process
from gentk.recipe import schema


def draw(section: schema.Times, process: Process, n: int, gen: torch.Generator, device: torch.device | str) -> Tensor:
    """n independent process times, float64 (n,) on `device`, from the generator's own stream.

    `lognormal` and `karras` are laws of the noise-to-signal ratio (EDM's sigma), mapped to time; `uniform` and
    `logit-normal` are laws of the time itself. What falls outside [t_min, t_max] is put on its end: networks are
    never asked, and never learn, beyond the range that the process states.
    """

    def stream(law: str) -> Tensor:
        make = torch.randn if law == "normal" else torch.rand
        return make(n, generator=gen, device=gen.device, dtype=torch.float64).to(device)

    match section:
        case schema.LogNormal():
            t = process.t_of(torch.exp(section.mean + section.std * stream("normal")))
        case schema.KarrasUniform():
            lo, hi = section.sigma_min ** (1 / section.rho), section.sigma_max ** (1 / section.rho)
            t = process.t_of((lo + section.t_max / 1000 * stream("uniform") * (hi - lo)) ** section.rho)
        case schema.UniformTime():
            t = process.t_min + (process.t_max - process.t_min) * stream("uniform")
        case schema.LogitNormal():
            u = torch.sigmoid(section.mean + section.std * stream("normal"))
            t = process.t_min + (process.t_max - process.t_min) * u
    return t.clamp(process.t_min, process.t_max)
