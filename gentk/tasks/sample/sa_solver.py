"""SA-Solver: stochastic Adams predictor-corrector (arXiv:2309.05019)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

from gentk.recipe.schema import Section

KIND = "denoiser"


class Config(Section):
    """Settings of the solver."""

    name: Literal["sa-solver"]
    predictor: Annotated[int, Field(ge=1, le=4)] = Field(3, description="evaluations in the predictor")
    corrector: Annotated[int, Field(ge=0, le=4)] = Field(
        4, description="evaluations in the corrector, the new one included; 0: none"
    )
    evaluate: Literal["pec", "pece"] = Field(
        "pec", description="pece: evaluate at the corrected point too, twice a step"
    )
    tau: NonNegativeFloat | tuple[tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat], ...] = Field(
        0.0,
        description="noise: 0 the ODE, 1 the usual reverse SDE; or a list of [value, lowest, highest sigma], else 0",
    )
    tau_at: Literal["end", "start"] = Field(
        "end", description="where on a step tau is read: authors end, diffusers start"
    )
    mode: Literal["few", "more"] = Field(
        "few",
        description="few: no correction and no noise on the last step; more: correct there too, then evaluate again",
    )
    rescale: bool | None = Field(
        None, description="second-order weights of the paper's appendix D; null: as the mode has it"
    )
    lower_final: bool = Field(True, description="fall to lower order on the last steps")
