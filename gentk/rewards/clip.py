"""CLIPScore in the definitions in use: they differ in network, prefix, scale and preparation.

`clipscore`: 2.5 max(cos, 0), ViT-B/32, "A photo depicts " before the prompt (Hessel et al. 2021, arXiv:2104.08718);
`torchmetrics`: 100 max(cos, 0), ViT-L/14, no prefix, what torchmetrics computes by default;
`dmd2`: the cosine, OpenCLIP ViT-g/14, the prefix, pictures reduced to 256 first (Yin et al. 2024, arXiv:2405.14867).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gentk.errors import RecipeError, did_you_mean
from gentk.metrics import states
from gentk.metrics.registry import CLIP_VITL14
from gentk.recipe.weights import Weights
from gentk.rewards import pixels, towers

CLIP_VITB32 = Weights(
    name="ViT-B-32.pt",
    url="https://openaipublic.azureedge.net/clip/models/"
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
    size=353_976_522,
    sha256="40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    licence="MIT",
    note="CLIP ViT-B/32 of OpenAI",
)
CLIP_VITG14 = Weights(
    name="CLIP-ViT-g-14-laion2B-s12B-b42K.bin",
    url="https://huggingface.co/laion/CLIP-ViT-g-14-laion2B-s12B-b42K/resolve/main/open_clip_pytorch_model.bin",
    size=None,
    sha256="",
    licence="MIT",
    note="OpenCLIP ViT-g/14, laion2b_s12b_b42k",
)


@dataclass(frozen=True)
class Definition:
    """Score = scale * cosine, of at least 0 if `clipped`, between picture and `prefix` + prompt."""

    name: str
    weights: Weights
    architecture: str
    prefix: str
    scale: float
    clipped: bool
    reduce_to: int | None = None  # pictures are first reduced to this side by Lanczos


_PREFIX = "A photo depicts "
DEFINITIONS = {
    d.name: d
    for d in (
        Definition("clipscore", CLIP_VITB32, "ViT-B-32-quickgelu", _PREFIX, 2.5, True),
        Definition("torchmetrics", CLIP_VITL14, "ViT-L-14-quickgelu", "", 100.0, True),
        Definition("dmd2", CLIP_VITG14, "ViT-g-14", _PREFIX, 1.0, False, reduce_to=256),
    )
}


class ClipScore(nn.Module):
    """`score(images, prompts)` -> (N,) float32 in the units of the definition."""

    def __init__(self, clip: towers.Towers, definition: Definition) -> None:
        super().__init__()
        self.clip, self.definition = clip, definition
        self.record = {
            "metric": "clip",
            "definition": definition.name,
            "prefix": definition.prefix,
            "scale": definition.scale,
        } | clip.record

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images (N, 3, H, W), uint8 or, but for `dmd2`, float in [0, 1], and N prompts -> (N,)."""
        d, x = self.definition, pixels.check(images, prompts)
        if d.reduce_to is not None:
            x = pixels.square_lanczos(x, d.reduce_to)
        image = self.clip.image(pixels.crop(x, self.clip.side))
        cosine = (image * self.clip.text([d.prefix + prompt for prompt in prompts])).sum(-1)
        return d.scale * (cosine.clamp(min=0) if d.clipped else cosine)


def build(
    weights: Path | str | None = None,
    *,
    where: torch.device,
    offline: bool = False,
    definition: str = "clipscore",
) -> ClipScore:
    """The score of `definition`, by its own network or by `weights` (open_clip file, transformers folder, hub id).

    Raises RecipeError for an unknown definition, MissingAsset and GentkError as `towers.load`.
    """
    if definition not in DEFINITIONS:
        raise RecipeError(
            f"clip: no definition `{definition}`{did_you_mean(definition, DEFINITIONS)}",
            hint=f"there are {', '.join(DEFINITIONS)}",
        )
    d = DEFINITIONS[definition]
    encoder = towers.load(weights, d.weights, d.architecture, where=where, offline=offline)
    return states.frozen(ClipScore(encoder, d), where)
