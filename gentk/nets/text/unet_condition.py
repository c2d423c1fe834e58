"""Stable Diffusion 1 and 2: diffusers' UNet2DConditionModel (Rombach et al. 2022, arXiv:2112.10752)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from gentk.nets.text.prompts import Null, Prompts

CLASS = "UNet2DConditionModel"
_PLAIN = ("class_embed_type", "addition_embed_type", "time_cond_proj_dim", "encoder_hid_dim_type")


def misfit(config: Any) -> str:
    """What a config asks for that this adapter does not give; empty where there is nothing."""
    odd = [f"{key} {config[key]}" for key in _PLAIN if config.get(key) is not None]
    if config["in_channels"] != config["out_channels"]:
        odd.append(f"{config['in_channels']} channels in, {config['out_channels']} out (of an inpainting model?)")
    return f"with {', '.join(odd)}" if odd else ""


class Net(nn.Module):
    """Latents (B, C, h, w) at timestep `label` (B,), which may be fractional, with prompts -> what it predicts."""

    def __init__(self, core: Any) -> None:
        super().__init__()
        self.core = core
        self.null = Null()

    def set_null(self, prompts: Prompts) -> None:
        """The embedding of the null prompt (B = 1)."""
        self.null.set(prompts)

    def forward(self, x: Tensor, label: Tensor, cond: Prompts | None = None) -> Tensor:
        """The network's raw output."""
        out: Tensor = self.core(x, label, encoder_hidden_states=self.null(cond, x).embeds, return_dict=False)[0]
        return out
