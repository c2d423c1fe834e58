"""The anisotropic points: the moments of methods/vsdm.md, the board's squares, and the names."""

from __future__ import annotations

import math

import pytest
import torch

from gentk import data
from gentk.recipe.schema import Data


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("spiral-8y", (0.90, 1.60), (2.09, 18.68)), ("checkerboard-6x", (0.0, 0.0), (21.8, 3.63))],
)
def test_moments(name: str, mean: tuple[float, float], std: tuple[float, float]) -> None:
    """Of 40,000 points within 4 standard errors, 2 % of a deviation, and the two decimals stated."""
    assert f"points:{name}" in data.names()
    split = data.load(Data(name=f"points:{name}", points=40_000), "train")
    assert split.shape == (2,)
    for i in range(2):
        assert float(split.x[:, i].mean()) == pytest.approx(mean[i], abs=0.02 * std[i] + 0.005)
        assert float(split.x[:, i].std()) == pytest.approx(std[i], rel=0.02)


def test_the_board_is_empty_where_sines_agree() -> None:
    x = data.load(Data(name="points:checkerboard-6x", points=4000), "test").x
    signs = (x / torch.tensor([6.0, 1.0])).sin().sign()
    assert float((signs[:, 0] == signs[:, 1]).float().mean()) < 1e-3  # rounding on the edges alone
    assert float(x[:, 0].abs().max()) > 6 * 1.9 * math.pi
    assert not torch.equal(x, data.load(Data(name="points:checkerboard-6x", points=4000), "train").x)
