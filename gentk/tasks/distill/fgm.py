"""Flow generator matching: one step from a flow-matching teacher, in velocities (arXiv:2410.19310).

    symbol   the paper's meaning                                    in the core
    x_t      (1 - t) x0 + t x1, x1 noise; t = 1 is noise            x / (alpha + sigma) of any process, t = s / (1 + s)
    u_t      the teacher's velocity E[x1 - x0 | x_t]                (x_t - D_q) / t
    v_psi    the online flow, fitted to the generator's samples     (x_t - D_psi) / t
    g        the generator, x_in = t* z, x0 = x_in - t* v(x_in, t*)  D_theta(t* z, t*)
    L1       |u_t - v_psi|^2, the sampling path's share             |delta|^2 / t^2
    L2       2 (u_t - v_psi) . (v_psi - (x1 - x0))                  2 delta . (D_psi - x0) / t^2

The paper trains by L2 alone (`path: frozen`); L1 + L2 (`path: full`) is the unbiased gradient of the flow-matching
objective E |v_theta - u_t|^2, and better in the one public comparison (arXiv:2509.22459). An EDM teacher is a flow by
the last column, so both kinds of teacher work here, as flows do in the other methods.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PositiveInt

from gentk.recipe.schema import Times, UniformTime
from gentk.tasks.distill import OneStepSettings

if TYPE_CHECKING:  # this module must load without torch: recipes are listed and checked through it
    import torch
    from torch import Tensor

    from gentk.engine.method import Trainable

_UNIFORM = UniformTime(name="uniform", clock="flow")


class Config(OneStepSettings):
    """Settings of FGM; times are those of the straight path, for any teacher."""

    name: Literal["fgm"]
    t_star: Annotated[float, Field(gt=0, le=1)] = Field(
        0.714,
        description="the time at which the generator is called; 0.714: EDM's sigma 2.5; 1: pure noise, flows only",
    )
    path: Literal["frozen", "full"] = Field("frozen", description="frozen: L2 alone, the paper's; full: L1 + L2")
    weight: Literal["const", "sid-l1", "edm", "s2", "s4", "velocity"] = Field(
        "velocity", description="w(sigma) on the generator loss in denoisers; velocity, 1 / t^2, is the paper's"
    )
    fake_steps: PositiveInt = Field(5, description="updates of the online flow per generator update; the paper: 1")
    fake_loss: Literal["edm", "flow"] = Field(
        "flow", description="what the online flow learns by: flow matching, or EDM's weighted denoising error"
    )
    noise_generator: Times = Field(_UNIFORM, description="times of the generator update")
    noise_fake: Times = Field(_UNIFORM, description="times of the online flow's update")

    @property
    def sigma_init(self) -> float:
        """t_star as a noise-to-signal ratio; inf at 1."""
        return math.inf if self.t_star == 1 else self.t_star / (1 - self.t_star)


def build(recipe: Any, where: torch.device) -> Trainable:
    """The method, ready to train on device `where`."""
    from gentk.losses.divergence import fgm
    from gentk.tasks.distill._one_step import OneStep

    config: Config = recipe.method

    def objective(x0: Tensor, d_teacher: Tensor, d_fake: Tensor) -> Tensor:
        return fgm(x0, d_teacher, d_fake, path=config.path)

    return OneStep(recipe, where, objective)
