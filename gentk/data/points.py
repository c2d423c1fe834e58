"""`points:NAME`: exact samples of a two-dimensional density of `gentk.targets`."""

from __future__ import annotations

import torch

from gentk import targets
from gentk.data.arrays import Arrays, Split
from gentk.data.wide import POINTS
from gentk.recipe.schema import Data

_SEEDS: dict[Split, int] = {"train": 20_240_001, "test": 20_240_002}


def read(section: Data, split: Split) -> Arrays:
    """`section.points` samples x (N, 2) float32, the same on every call; the splits have independent seeds.

    The densities are defined with values of order one (root mean square per coordinate between 0.45 and 1.5), so
    nothing is rescaled: a model of these points is a model of the target itself, and its `log_prob` and `score` apply
    as they stand. Those of `wide` keep their own scale too. Raises RecipeError for an unknown name.
    """
    gen = torch.Generator().manual_seed(_SEEDS[split])
    name = section.name.partition(":")[2]
    sample = POINTS.get(name) or targets.find(name).sample
    return Arrays(sample(section.points, gen).float(), None, 0)
