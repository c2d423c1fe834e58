"""`series:FILE`: a multivariate time series from CSV, cut into training rows and windows to be forecast.

A line per time, a column per series, comma separated, plain or .gz, with or without a header; a first column that
holds no numbers (dates) is left out. `series:exchange-rate` and `series:etth1` are files of `timeseries/` under
`data.root` or $GENTK_DATA.
"""

from __future__ import annotations

import gzip
import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gentk.errors import MissingAsset, RecipeError, RunFailed
from gentk.recipe.schema import Data
from gentk.recipe.series import Series

KNOWN = {"exchange-rate": "exchange_rate.txt.gz", "etth1": "ETTh1.csv.gz"}


@dataclass(frozen=True, eq=False)
class SeriesData:
    """`values` float64 (T, d) with their column names; rows before `train` are trained on.

    As data of the loop its samples are the windows of context + horizon rows within the training rows: float32.
    """

    name: str
    columns: tuple[str, ...]
    values: Tensor
    train: int
    section: Series

    @property
    def length(self) -> int:
        """Rows of a window."""
        return self.section.context + self.section.horizon

    def __len__(self) -> int:
        """The number of training windows."""
        return self.train - self.length + 1

    def batch(self, index: Tensor) -> tuple[Tensor, None]:
        """Training windows that begin at rows `index` (B,): (B, context + horizon, d)."""
        return self.at(index), None

    def at(self, first: Tensor) -> Tensor:
        """Windows that begin at rows `first` (B,), float32 (B, context + horizon, d)."""
        return self.values[first[:, None] + torch.arange(self.length)].float()

    def starts(self, split: str) -> Tensor:
        """First rows of the `validation` or `test` windows, whose horizons follow each other: (windows,)."""
        s = self.section
        first, count = (self.train, s.validation) if split == "validation" else (len(self.values), s.test)
        if split == "test":
            first -= s.test * s.horizon
        return first + torch.arange(count) * s.horizon - s.context


def load(section: Data, windows: Series) -> SeriesData:
    """The series of a `data:` section.

    Raises MissingAsset without the file, RunFailed with line and column for gaps and text, and with the column for a
    constant one, RecipeError for windows that are longer than the series.
    """
    path = locate(section)
    columns, rows = read(path)
    values = torch.tensor(rows, dtype=torch.float64)
    if windows.rows is not None:
        if windows.rows > len(values):
            raise RecipeError(f"method.series.rows: {windows.rows} asked for, {path} has {len(values)}")
        values = values[: windows.rows]
    held = (windows.test + windows.validation) * windows.horizon
    train = len(values) - held
    if train < windows.context + windows.horizon:
        raise RecipeError(
            f"method.series: {path} has {len(values)} rows: {held} are held out, and a training window needs "
            f"{windows.context} + {windows.horizon} more",
            hint="lower horizon, context, test or validation",
        )
    flat = (values[:train] == values[0]).all(0)
    if bool(flat.any()):
        name = columns[int(flat.double().argmax())]
        raise RunFailed(f"{path}: column `{name}` is constant in the {train} training rows", hint="take it out")
    return SeriesData(section.name, columns, values, train, windows)


def locate(section: Data) -> Path:
    """The file of a series. Raises MissingAsset that names where it was looked for."""
    name = section.name.partition(":")[2]
    if name not in KNOWN:
        path = Path(section.root or "", name).expanduser()
        if not path.is_file():
            raise MissingAsset(f"{section.name}: no file {path}", hint=f"a CSV file, or one of {', '.join(KNOWN)}")
        return path
    root = section.root or os.environ.get("GENTK_DATA")
    for folder in [Path(root), Path(root, "timeseries")] if root else []:
        if (folder / KNOWN[name]).is_file():
            return folder / KNOWN[name]
    raise MissingAsset(
        f"{section.name}: no file {KNOWN[name]}",
        hint="name the folder that holds it by `--set data.root=FOLDER` or the environment variable GENTK_DATA",
    )


def read(path: Path) -> tuple[tuple[str, ...], list[list[float]]]:
    """Column names and rows of a file; see the head of this one. Raises RunFailed with line and column for gaps."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as e:
        raise RunFailed(f"{path}: cannot be read as text: {e}") from e
    lines = [(i, line.split(",")) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise RunFailed(f"{path}: is empty")
    header = None if _number(lines[0][1][-1]) is not None or len(lines) == 1 else lines.pop(0)[1]
    dated = _number(lines[0][1][0]) is None and len(lines[0][1]) > 1 and bool(lines[0][1][0].strip())
    width = len(lines[0][1])
    names = tuple(h.strip() for h in header) if header else tuple(f"{k + 1}" for k in range(width))
    rows = []
    for i, cells in lines:
        if len(cells) != width or len(names) != width:
            raise RunFailed(f"{path}: line {i} has {len(cells)} columns, expected {len(names)}")
        row = [_number(cell) for cell in cells[dated:]]
        for name, cell, value in zip(names[dated:], cells[dated:], row, strict=True):
            if value is None or not math.isfinite(value):
                what = f"holds `{cell.strip()}`" if cell.strip() else "is empty"
                raise RunFailed(
                    f"{path}: line {i}, column `{name}` {what}: a gap in the series", hint="fill it or cut the file"
                )
        rows.append([float(v) for v in row if v is not None])
    return names[dated:], rows


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
