"""The section of low-rank adapters."""

from __future__ import annotations

from pydantic import Field, PositiveFloat, PositiveInt

from gentk.recipe.section import Section


class Lora(Section):
    """Low-rank adapters on one frozen base instead of full copies of it (Hu et al. 2021, arXiv:2106.09685)."""

    rank: PositiveInt = Field(16, description="rank r of an adapter's two matrices, at most that of its layer")
    alpha: PositiveFloat | None = Field(
        None, description="an adapter's answer is scaled by alpha / rank; null: the rank, so by 1"
    )
    targets: tuple[str, ...] = Field(
        (),
        description="adapted layers, by name or any whole part of it, as `to_q` or `attn1`; none given: every linear "
        "layer and every convolution of 1 x 1 or 3 x 3",
    )
