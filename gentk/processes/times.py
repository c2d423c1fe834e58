"""Laws of the noise level for training, drawn in process time."""

from __future__ import annotations

import torch
from torch import Tensor

from gentk.processes import rows
from gentk.processes.process import Process, ratio
from gentk.recipe import schema


def draw(section: schema.Times, process: Process, n: int, gen: torch.Generator, device: torch.device | str) -> Tensor:
    """n independent process times, float64 (n,) on `device`, from the generator's own stream.

    `lognormal` and `karras` are laws of the noise-to-signal ratio (EDM's sigma), mapped to time; `uniform` and
    `logit-normal` are laws of the time itself, or with `clock: flow` of `flow_time`, mapped to the process's. What
    falls outside [t_min, t_max] is put on its end: networks are never asked, and never learn, beyond the range that the
    process states.
    """

    def stream(law: str) -> Tensor:
        make = rows.randn if law == "normal" else rows.rand
        return make((n,), gen, device=gen.device, dtype=torch.float64).to(device)

    match section:
        case schema.LogNormal():
            t = process.t_of(torch.exp(section.mean + section.std * stream("normal")))
        case schema.KarrasUniform():
            lo, hi = section.sigma_min ** (1 / section.rho), section.sigma_max ** (1 / section.rho)
            t = process.t_of((lo + section.t_max / 1000 * stream("uniform") * (hi - lo)) ** section.rho)
        case schema.UniformTime():
            t = _placed(section, process, stream("uniform"))
        case schema.LogitNormal():
            t = _placed(section, process, torch.sigmoid(section.mean + section.std * stream("normal")))
    return t.clamp(process.t_min, process.t_max)


def _placed(section: schema.UniformTime | schema.LogitNormal, process: Process, u: Tensor) -> Tensor:
    """Process times at the fractions u, in [0, 1], of the range that the law's clock runs over."""
    if section.clock == "process":
        return process.t_min + (process.t_max - process.t_min) * u
    low, high = flow_time(ratio(process, torch.tensor([process.t_min, process.t_max], dtype=torch.float64))).tolist()
    t = low + (high - low) * u
    # The map of Esser et al. 2024 (arXiv:2403.03206, eq. 23). It is done here, once: whoever draws mixes the sample and
    # asks the network at the same shifted time.
    return process.t_of(sigma_of(section.shift * t / (1 + (section.shift - 1) * t)))


def flow_time(s: Tensor) -> Tensor:
    """s / (1 + s), the time at which rectified flow has the noise-to-signal ratio s in [0, inf]; 1 at inf."""
    return 1 / (1 + 1 / s)


def sigma_of(t: Tensor) -> Tensor:
    """t / (1 - t), the inverse of `flow_time`: inf at t = 1."""
    return t / (1 - t)
