from __future__ import annotations

import pytest
import torch

from gentk import data
from gentk.data import DataSet, to_uint8
from gentk.errors import RecipeError, RunFailed
from gentk.recipe.schema import Data

BYTES = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def images(x: torch.Tensor, y: torch.Tensor | None = None) -> DataSet:
    return DataSet("made", "train", x, y, 10, "image")


def test_every_byte_survives_the_way_to_the_network_and_back() -> None:
    x, y = images(BYTES).batch(torch.tensor([0]))
    assert x.dtype == torch.float32
    assert y is None
    assert x.min() == -1
    assert x.max() == 1
    assert torch.equal(to_uint8(x), BYTES)
    assert not torch.equal(to_uint8(x - 2 / 255), BYTES)


def test_batch_picks_samples_and_labels_in_order() -> None:
    x = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 3, 2, 4)
    got, labels = images(x, torch.arange(5)).batch(torch.tensor([3, 0, 3]))
    assert got.shape == (3, 3, 2, 4)
    assert images(x).shape == (3, 2, 4)
    assert len(images(x)) == 5
    torch.testing.assert_close(got[:, 0, 0, 0], torch.tensor([3.0, 0.0, 3.0]) / 127.5 - 1)
    assert labels is not None
    assert labels.tolist() == [3, 0, 3]


def test_points_are_not_scaled() -> None:
    x = torch.tensor([[0.5, -2.0]])
    assert torch.equal(DataSet("made", "train", x, None, 0, "points").batch(torch.tensor([0]))[0], x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_to_uint8_follows_edm_in_every_dtype(dtype: torch.dtype) -> None:
    x = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, float("inf"), -float("inf")], dtype=dtype)
    assert to_uint8(x).tolist() == [0, 0, 128, 255, 255, 255, 0]


def test_to_uint8_refuses_nan() -> None:
    with pytest.raises(RunFailed, match="NaN"):
        to_uint8(torch.tensor([0.0, float("nan")]))


@pytest.mark.parametrize("name", ["cifar", "cifar10:", "digits:8", "images", "images:", "points", "", ":ring8"])
def test_an_unknown_name_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(RecipeError, match="unknown data set") as caught:
        data.load(Data(name=name), "train")
    assert "fashion-mnist" in caught.value.hint


def test_a_near_miss_is_suggested() -> None:
    with pytest.raises(RecipeError, match="did you mean `cifar10`"):
        data.load(Data(name="cifar-10"), "train")
    with pytest.raises(RecipeError, match="did you mean `ring8`"):
        data.load(Data(name="points:rng8"), "train")


def test_names_lists_what_load_knows() -> None:
    assert {"digits", "mnist", "fashion-mnist", "cifar10", "points:ring8", "images:FOLDER"} <= set(data.names())


@pytest.mark.parametrize("name", ["digits", "points:ring8"])
def test_a_size_that_the_data_lack_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"`size: 32` is asked for, but `.*` holds"):
        data.load(Data(name=name, size=32), "train")
    assert data.load(Data(name="digits", size=8), "train").shape == (1, 8, 8)
