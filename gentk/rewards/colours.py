"""The colour of an object by zero-shot CLIP ViT-L/14, as GenEval asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gentk.metrics.geneval import COLOURS, Detection
from gentk.metrics.registry import CLIP_VITL14
from gentk.rewards import pixels, towers

TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")
_GREY = 0x99


class ClipColours:
    """A `geneval.ColourClassifier`: the colour whose sentences lie nearest to the object, cut out on grey.

    Without a mask the object is cut out with what is behind it.
    """

    def __init__(self, clip: towers.Towers) -> None:
        self.clip = clip
        self.record = {"colours": clip.record}
        self._sentences: dict[str, Tensor] = {}

    @torch.no_grad()  # a measurement
    def __call__(self, image: Tensor, objects: Sequence[Detection], name: str) -> list[str]:
        """uint8 (3, H, W) and objects of the class `name` in it -> one colour for each."""
        if name not in self._sentences:
            self._sentences[name] = self._classes(name)
        where = self._sentences[name].device
        crops = [pixels.crop(cut(image, each)[None].to(where), self.clip.side) for each in objects]
        return [COLOURS[int((self.clip.image(crop) @ self._sentences[name].T).argmax())] for crop in crops]

    def _classes(self, name: str) -> Tensor:
        """A direction for each colour: the mean over the templates of directions, made a direction again."""
        texts = [t.format(colour=colour, name=name) for colour in COLOURS for t in TEMPLATES]
        return F.normalize(self.clip.text(texts).reshape(len(COLOURS), len(TEMPLATES), -1).mean(1), dim=-1)


def build(weights: Path | str | None = None, *, where: torch.device, offline: bool = False) -> ClipColours:
    """The classifier by CLIP `weights`, as `towers.load` takes them; None: OpenAI's. Raises what that raises."""
    return ClipColours(
        towers.load(
            weights,
            CLIP_VITL14,
            "ViT-L-14-quickgelu",
            where=where,
            offline=offline,
            remedy="name the file by --set method.clip=PATH",
        )
    )


def cut(image: Tensor, each: Detection) -> Tensor:
    """The pixels of the object's box, those outside of its mask grey: uint8 (3, H, W) -> (3, h, w)."""
    if each.mask is not None:
        image = image.where(each.mask.to(image.device), torch.full_like(image, _GREY))
    height, width = image.shape[1:]
    left, top, right, bottom = map(round, each.box)
    # At least a pixel, and of the picture: a box may lie on the border, or be thinner than a pixel.
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    right, bottom = min(max(right, left + 1), width), min(max(bottom, top + 1), height)
    return image[:, top:bottom, left:right]
