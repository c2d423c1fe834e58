"""The VAE of a text-to-image model: images to the latents that its network knows, and back, with gradients.

latents = (z - shift) scale, z of the encoder; `scaling_factor` and `shift_factor` stand in the VAE's own config.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gentk.errors import RunFailed
from gentk.nets.text import part

CLASS = "AutoencoderKL"


class Codec(nn.Module):
    """diffusers' AutoencoderKL between images (B, 3, H, W) about [-1, 1] and scaled latents (B, C, H/f, W/f).

    It computes in the dtype of its own weights, whatever it is given, and answers in the dtype of what it was given.
    """

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    @property
    def factor(self) -> int:
        """Pixels of one latent along a side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return int(self.vae.config.latent_channels)

    @property
    def scale(self) -> float:
        """What latents are multiplied by."""
        return float(self.vae.config.scaling_factor)

    @property
    def shift(self) -> float:
        """What is taken from them first."""
        return float(self.vae.config.shift_factor or 0.0)

    def encode(self, images: Tensor, gen: torch.Generator | None = None) -> Tensor:
        """Latents: a draw of the encoder's Gaussian by `gen`, or its mean. Raises RunFailed as `decode`."""
        law = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        z = law.mean
        if gen is not None:
            z = z + law.std * torch.randn(z.shape, generator=gen, device=gen.device).to(z)
        self._check("encoder", images, z)
        latents: Tensor = (z - self.shift) * self.scale
        return latents.to(images.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Images, not clamped: rewards need the gradient beyond the range too.

        Raises RunFailed where the VAE overflows, with the dtype that it did so in, or the latents are not finite.
        """
        own: Tensor = latents.to(self.vae.dtype) / self.scale + self.shift
        images: Tensor = self.vae.decode(own, return_dict=False)[0]
        self._check("decoder", latents, images)
        return images.to(latents.dtype)

    def _check(self, what: str, given: Tensor, made: Tensor) -> None:
        if made.is_meta:  # sizes alone
            return
        bad = ~made.isfinite().flatten(1).all(1)
        if not bool(bad.any()):
            return
        count = f"{int(bad.sum())} of {len(bad)} images"
        if not bool(given.isfinite().all()):
            raise RunFailed(f"VAE {what}: what it was given is not finite", hint="the model before it has diverged")
        dtype = str(self.vae.dtype).removeprefix("torch.")
        wider = "set latent.decode to float32 (or bfloat16)" if dtype == "float16" else "the input is out of its range"
        raise RunFailed(f"VAE {what}: overflow in {dtype}: {count} are not finite", hint=wider)


def load(place: Path, dtype: torch.dtype) -> Codec:
    """The VAE in the folder `place` of a pipeline. Raises as `gentk.nets.text.part`."""
    return Codec(part(CLASS, place / "vae", dtype)).eval()
