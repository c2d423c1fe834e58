from __future__ import annotations

import torch

from gentk import data, targets
from gentk.recipe.schema import Data


def test_points_repeat_and_the_splits_differ() -> None:
    section = Data(name="points:ring8", points=500)
    train, again, test = data.load(section, "train"), data.load(section, "train"), data.load(section, "test")
    assert torch.equal(train.x, again.x)
    assert not torch.isin(train.x, test.x).any()
    assert train.shape == (2,)
    assert len(train) == 500
    assert train.x.dtype == torch.float32
    assert train.kind == "points"
    assert train.y is None
    assert train.classes == 0


def test_every_target_is_a_data_set_of_order_one() -> None:
    for name in targets.names():
        x = data.load(Data(name=f"points:{name}", points=20_000), "train").x
        rms = x.square().mean(0).sqrt()
        assert ((rms > 0.45) & (rms < 1.5)).all(), (name, rms)
