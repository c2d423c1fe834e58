"""`series:FILE`: what is read, the split, and what is wrong with a file, named."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from gentk.data import series
from gentk.errors import GentkError, MissingAsset, RecipeError, RunFailed
from gentk.recipe.schema import Data
from gentk.recipe.series import Series

WINDOWS = Series(context=4, horizon=2, test=2, validation=1)


def text(rows: int = 30) -> str:
    return "date,a,b\n" + "".join(f"2020-01-{k:02d},{k}.5,{k * k % 7}\n" for k in range(rows))


def load(path: Path, windows: Series = WINDOWS) -> series.SeriesData:
    return series.load(Data(name=f"series:{path}"), windows)


def test_a_file_with_dates_and_a_header(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text())
    found = load(path)
    assert found.columns == ("a", "b")
    assert found.values.shape == (30, 2)
    assert found.train == 24
    assert len(found) == 24 - 6 + 1
    x, y = found.batch(torch.tensor([0, 18]))
    assert y is None
    assert x[:, 0, 0].tolist() == [0.5, 18.5]
    # the last training window ends before the first held-out row
    assert float(x[1, -1, 0]) == 23.5
    assert found.starts("validation").tolist() == [20]
    assert found.starts("test").tolist() == [22, 24]
    test = found.at(found.starts("test"))
    assert test[:, 4:, 0].flatten().tolist() == [26.5, 27.5, 28.5, 29.5]


def test_without_dates_and_header_and_zipped_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "x.txt.gz"
    path.write_bytes(gzip.compress("\n".join(f"{k},{2 * k}" for k in range(40)).encode()))
    found = load(path, WINDOWS.model_copy(update={"rows": 30}))
    assert found.columns == ("1", "2")
    assert float(found.values[-1, 1]) == 58
    with pytest.raises(RecipeError, match="rows: 50"):
        load(path, WINDOWS.model_copy(update={"rows": 50}))


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda s: s.replace(",7.5,", ",,"), RunFailed, "line 9, column `a` is empty: a gap"),
        (lambda s: s.replace(",7.5,", ",nan,"), RunFailed, "line 9, column `a` holds `nan`"),
        (lambda s: s.replace(",7.5,", ",?,"), RunFailed, "line 9, column `a` holds `\\?`"),
        (lambda s: s.replace("2020-01-07,7.5,0\n", "2020-01-07,7.5\n"), RunFailed, "line 9 has 2 columns, expected 3"),
        (lambda s: "\n".join(",".join([*r.split(",")[:2], "1"]) for r in s.splitlines()[1:]), RunFailed, "constant"),
        (lambda s: "", RunFailed, "is empty"),
        (lambda s: "\n".join(s.splitlines()[:9]), RecipeError, "8 rows"),
    ],
    ids=["gap", "nan", "text", "short line", "constant", "empty", "horizon too long"],
)
def test_bad_files(tmp_path: Path, change: object, error: type[GentkError], says: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(change(text()))  # type: ignore[operator]
    with pytest.raises(error, match=says) as caught:
        load(path)
    assert "x.csv" in str(caught.value)


def test_absent_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GENTK_DATA", raising=False)
    with pytest.raises(MissingAsset, match="no file"):
        load(tmp_path / "none.csv")
    with pytest.raises(MissingAsset, match="ETTh1") as caught:
        series.load(Data(name="series:etth1"), WINDOWS)
    assert "GENTK_DATA" in caught.value.hint


def test_a_season_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="season"):
        Series(context=10, horizon=2, season=12)
