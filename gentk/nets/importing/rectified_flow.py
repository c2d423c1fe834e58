"""Checkpoints of RectifiedFlow (Liu et al. 2022, arXiv:2209.03003): score_sde's networks, trained as velocities.

Their time runs from noise at 0 to data at 1 and was drawn from [0.001, 1]; ours is 1 minus it, so that with the
network F the velocity data - noise is F(x, 999 (1 - t)) and t ends at 0.999.
"""

from __future__ import annotations

from pathlib import Path

from gentk.nets.importing import Imported
from gentk.nets.importing.score_sde import average
from gentk.nets.importing.settings import Settings
from gentk.recipe import schema


def read(path: Path, settings: Settings) -> Imported:
    """The moving average of the checkpoint. Raises GentkError for another layout or architecture."""
    section, shape, state, facts = average(path, settings)
    return Imported(
        net=section,
        shape=shape,
        classes=0,
        process=settings.section(schema.RectifiedFlow, "process", name="rectified-flow", t_max=0.999),
        predicts="reverse-flow",
        inputs=schema.Inputs(scale="process", label="time", factor=-999.0, offset=999.0),
        state=state,
        facts={"format": "rectified-flow", **facts},
    )
