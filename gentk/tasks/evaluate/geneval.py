"""GenEval: whether pictures show the objects, counts, colours and places of their prompts (arXiv:2310.11513)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from gentk.recipe.schema import Section

DONE_BY = "_detecting"
NEEDS = "prompts"


class Config(Section):
    """Settings of the measurement. Pictures in the order of the prompts; `samples` may be a file of detections."""

    name: Literal["geneval"]
    prompts: str | None = Field(None, description="prompts with what they ask for, .jsonl; null: the official 553")
    per_prompt: PositiveInt = Field(4, description="pictures per prompt, one after the other")
    weights: str | None = Field(
        None, description="the detector: hub id or folder of a Mask2Former; null: facebook's of COCO instances"
    )
    clip: str | None = Field(None, description="file of CLIP ViT-L/14 behind the colours; null: where it is looked for")
    check_detector: str | None = Field(
        None, description="folder of photographs of COCO's objects, on which the detector must find something first"
    )
    n: PositiveInt | None = Field(None, description="pictures measured; null: all")
    steps: PositiveInt = Field(18, description="Heun steps for a many-step model: NFE = 2 steps - 1")
    batch: PositiveInt = Field(16, description="pictures read at a time")
