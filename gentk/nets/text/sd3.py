"""Stable Diffusion 3: diffusers' SD3Transformer2DModel (Esser et al. 2024, arXiv:2403.03206)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gentk.nets.text.prompts import Null, Prompts

CLASS = "SD3Transformer2DModel"


def misfit(config: Any) -> str:
    """What a config asks for that this adapter does not give; empty where there is nothing."""
    inside, out = config["in_channels"], config.get("out_channels") or config["in_channels"]
    return "" if out == inside else f"with {inside} channels in and {out} out"


class Net(nn.Module):
    """Latents (B, C, h, w) at 1000 times flow time, `label` (B,), with prompts -> velocity, noise minus data."""

    def __init__(self, core: Any) -> None:
        super().__init__()
        self.core = core
        self.null = Null()

    def set_null(self, prompts: Prompts) -> None:
        """The embedding of the null prompt (B = 1)."""
        self.null.set(prompts)

    def forward(self, x: Tensor, label: Tensor, cond: Prompts | None = None) -> Tensor:
        """The network's raw output."""
        prompts = self.null(cond, x)
        out: Tensor = self.core(
            hidden_states=x,
            encoder_hidden_states=prompts.embeds,
            pooled_projections=prompts.pooled,
            timestep=label,
            return_dict=False,
        )[0]
        return out
