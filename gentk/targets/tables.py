"""Tables of two classes as design matrices: categories one-hot without their first level, columns standardised."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gentk.errors import MissingAsset, RecipeError, RunFailed, did_you_mean

_MISSING = {"", "?", "NA", "NaN", "nan"}
_MOST_LEVELS = 64  # more categories than this are names of rows, not of groups
_FILES = {
    "german": "german.csv",
    "ionosphere": "ionosphere.csv",
    "sonar": "sonar.csv",
    "banknote": "banknote_authentication.csv",
    "adult": "adult-train.csv.gz",
}
NAMES = ("synthetic", "breast-cancer", *_FILES)


@dataclass(frozen=True, eq=False)
class Table:
    """`x` (n, p) float64 with columns of mean 0 and deviation 1, `y` (n,) in {0, 1}, and what was left out."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    columns: tuple[str, ...]
    positive: str
    dropped: int = 0


def load(
    name: str,
    *,
    root: str | None = None,
    label: int = -1,
    header: bool = False,
    drop: Sequence[int] = (),
    rows: int | None = None,
) -> Table:
    """The table of that name or file. `synthetic` and `breast-cancer` need no file.

    Raises RecipeError for an unknown name or a label column that does not hold two classes, MissingAsset where a file
    is absent, RunFailed where it is no table.
    """
    if name == "synthetic":
        return _synthetic()
    if name == "breast-cancer":
        from sklearn.datasets import load_breast_cancer

        found = load_breast_cancer()
        return _standardised(found.data[:rows], found.target[:rows].astype(float), tuple(found.feature_names), "benign")
    if name in _FILES:
        folder = root or (os.path.join(os.environ["GENTK_DATA"], "tabular") if "GENTK_DATA" in os.environ else None)
        if folder is None:
            raise MissingAsset(
                f"target `logistic:{name}` is a file and no folder is given",
                hint=f"set target.root or $GENTK_DATA to where (tabular/){_FILES[name]} is",
            )
        return read(Path(folder) / _FILES[name], label=label, header=header, drop=drop, rows=rows)
    path = Path(name).expanduser()
    if not path.name.endswith((".csv", ".csv.gz")):
        raise RecipeError(
            f"unknown table `{name}`{did_you_mean(name, NAMES)}", hint=f"one of {', '.join(NAMES)}, or a .csv file"
        )
    return read(path, label=label, header=header, drop=drop, rows=rows)


def read(
    path: Path, *, label: int = -1, header: bool = False, drop: Sequence[int] = (), rows: int | None = None
) -> Table:
    """A comma-separated file, plain or gzipped. `?` and empty are missing: a category of its own, or the row goes."""
    if not path.is_file():
        raise MissingAsset(f"{path}: no such table", hint="give a .csv file, or set target.root")
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as f:
            lines = [[cell.strip() for cell in row] for row in csv.reader(f) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise RunFailed(f"{path}: cannot be read as a table: {e}") from e
    names = lines.pop(0) if header and lines else [f"x{k}" for k in range(len(lines[0]) if lines else 0)]
    lines = lines[:rows]
    if len(lines) < 4:
        raise RunFailed(f"{path}: {len(lines)} rows are no table")
    if wrong := next((i for i, line in enumerate(lines) if len(line) != len(names)), None):
        raise RunFailed(f"{path}: row {wrong + 1} has {len(lines[wrong])} columns, others {len(names)}")
    width = len(names)
    for what, place in [("label", label), *(("drop", k) for k in drop)]:
        if not -width <= place < width:
            raise RecipeError(f"target.{what}: {place} is outside the {width} columns of {path.name}")
    at = label % width
    cells = list(zip(*lines, strict=True))
    y, positive = _label(cells, at, path, header)
    keep = np.ones(len(lines), dtype=bool)
    left_out = {at, *(k % width for k in drop)}
    parts: list[NDArray[np.float64]] = []
    columns: list[str] = []
    for k in (k for k in range(width) if k not in left_out):
        column = np.array(cells[k])
        missing = np.isin(column, list(_MISSING))
        try:
            values = np.where(missing, "nan", column).astype(np.float64)
            keep &= ~missing
            parts.append(values)
            columns.append(names[k])
        except ValueError:
            levels = sorted(set(column.tolist()))
            if len(levels) > _MOST_LEVELS:
                raise RecipeError(
                    f"{path.name}: column {k} has {len(levels)} different words: names of rows, not a category",
                    hint=f"leave it out: --set target.drop='[{k}]'",
                ) from None
            parts += [(column == level).astype(np.float64) for level in levels[1:]]
            columns += [f"{names[k]}={level}" for level in levels[1:]]
    if not parts:
        raise RecipeError(f"{path.name}: no columns are left beside the label")
    return _standardised(np.stack(parts, 1)[keep], y[keep], tuple(columns), positive, dropped=int((~keep).sum()))


def _label(cells: list[tuple[str, ...]], at: int, path: Path, named: bool) -> tuple[NDArray[np.float64], str]:
    # the test file of Adult ends its labels with a full stop
    column = [cell.rstrip(".") if not _number(cell) else cell for cell in cells[at]]
    classes = sorted(set(column))
    if len(classes) != 2:
        pairs = [str(k) for k, each in enumerate(cells) if len(set(each)) == 2]
        hint = f"columns that have two: {', '.join(pairs)}; set target.label" if pairs else "it needs two classes"
        if not named and len(classes) == 3:
            hint += "; set target.header: true if the first line names the columns"
        raise RecipeError(
            f"target.label: column {at} of {path.name} has {len(classes):,} different values, a label has two",
            hint=hint,
        )
    return np.array([cell == classes[1] for cell in column], dtype=np.float64), classes[1]


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _standardised(
    x: NDArray[np.float64], y: NDArray[np.float64], columns: tuple[str, ...], positive: str, *, dropped: int = 0
) -> Table:
    """Columns that do not vary are left out."""
    spread = x.std(0)
    varies = spread > 1e-12 * np.abs(x).max(0).clip(min=1e-300)
    if not varies.any():
        raise RecipeError("the table's columns do not vary: there is nothing to learn from")
    x = (x[:, varies] - x[:, varies].mean(0)) / spread[varies]
    return Table(x, y, tuple(c for c, v in zip(columns, varies, strict=True) if v), positive, dropped)


def _synthetic() -> Table:
    """690 rows of 14 features that correlate by 0.8^|i - j|, weights N(0, 1), labels by the model: 15 parameters."""
    rng = np.random.default_rng(20_230_604)
    n, p = 690, 14
    lag = np.abs(np.subtract.outer(np.arange(p), np.arange(p)))
    x = rng.standard_normal((n, p)) @ np.linalg.cholesky(0.8**lag).T
    w = rng.standard_normal(p + 1)
    y = (rng.random(n) < 1 / (1 + np.exp(-(x @ w[1:] + w[0])))).astype(np.float64)
    return _standardised(x, y, tuple(f"x{k}" for k in range(p)), "1")
