"""PixArt-alpha: diffusers' PixArtTransformer2DModel (Chen et al. 2024, arXiv:2310.00426)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gentk.nets.text.prompts import Null, Prompts

CLASS = "PixArtTransformer2DModel"


def misfit(config: Any) -> str:
    """What a config asks for that this adapter does not give; empty where there is nothing."""
    inside, out = config["in_channels"], config.get("out_channels") or config["in_channels"]
    return "" if out in (inside, 2 * inside) else f"with {inside} channels in and {out} out"


class Net(nn.Module):
    """Latents (B, C, h, w) at timestep `label` (B,), which may be fractional, with prompts -> what it predicts.

    Half of its output are variances, which are dropped. The 1024-pixel network is also told the size of the image, in
    pixels, and its ratio of sides (`sizes`: pixels of one latent).
    """

    def __init__(self, core: Any, sizes: int = 8) -> None:
        super().__init__()
        self.core = core
        self.null = Null()
        self.sizes = sizes

    def set_null(self, prompts: Prompts) -> None:
        """The embedding of the null prompt (B = 1)."""
        self.null.set(prompts)

    def forward(self, x: Tensor, label: Tensor, cond: Prompts | None = None) -> Tensor:
        """The network's raw output without the variances."""
        prompts = self.null(cond, x)
        out: Tensor = self.core(
            x,
            encoder_hidden_states=prompts.embeds,
            encoder_attention_mask=prompts.mask,
            timestep=label,
            added_cond_kwargs=self._told(x),
            return_dict=False,
        )[0]
        return out[:, : x.shape[1]]

    def _told(self, x: Tensor) -> dict[str, Tensor | None]:
        if not self.core.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (self.sizes * side for side in x.shape[2:])
        size = torch.tensor([[height, width]], device=x.device, dtype=x.dtype)
        ratio = torch.tensor([[height / width]], device=x.device, dtype=x.dtype)
        return {"resolution": size.expand(len(x), 2), "aspect_ratio": ratio.expand(len(x), 1)}
