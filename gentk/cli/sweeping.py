"""Sweeps: `--sweep KEY=V,V,...` and `--seeds A-B` as a grid of points, one run each."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from gentk.errors import RecipeError
from gentk.recipe import yaml12

_MOST = 10_000  # points: a slip of the keyboard, not a grid


class Axis(NamedTuple):
    """One key and the values that it takes."""

    key: str
    values: tuple[Any, ...]


class Point(NamedTuple):
    """One run of a sweep: what it sets, as `--set` takes it, and the name of its folder."""

    sets: tuple[str, ...] = ()
    name: str = ""


def axes(sweeps: Sequence[str], seeds: str | None) -> list[Axis]:
    """The axes of a grid in the order given, seeds last. Raises RecipeError for what is no list of values."""
    found = [_axis(text) for text in sweeps]
    if seeds is not None:
        found.append(Axis("seed", tuple(_range(seeds))))
    for axis in found:
        if sum(other.key == axis.key for other in found) > 1:
            raise RecipeError(f"--sweep {axis.key}: given twice", hint="list all its values in one: KEY=V,V,...")
    return found


def points(grid: Sequence[Axis]) -> list[Point]:
    """Every point of the grid, the last axis fastest; one point without settings where there is no axis."""
    count = 1
    for axis in grid:
        count *= len(axis.values)
    if count > _MOST:
        raise RecipeError(f"--sweep: {count:,} runs; at most {_MOST:,} are taken")
    ends = _ends([axis.key for axis in grid])
    found: list[Point] = []
    for values in itertools.product(*(axis.values for axis in grid)):
        words = [yaml12.inline(value) for value in values]
        sets = tuple(f"{axis.key}={word}" for axis, word in zip(grid, words, strict=True))
        found.append(Point(sets, ",".join(f"{end}={_plain(word)}" for end, word in zip(ends, words, strict=True))))
    names: dict[str, Point] = {}
    for point in found:
        if other := names.get(point.name):
            raise RecipeError(f"--sweep: {point.sets[0]} and {other.sets[0]} would share the folder {point.name}")
        names[point.name] = point
    return found


def _axis(text: str) -> Axis:
    key, equals, words = text.partition("=")
    key = key.strip()
    if not key or not equals or not words.strip():
        raise RecipeError(f"--sweep {text}: write KEY=VALUE,VALUE,...")
    try:
        values = yaml12.load(f"[{words}]", source="value")
    except RecipeError as error:
        said = "; ".join(line.partition(": ")[2] for line in str(error).splitlines())
        raise RecipeError(f"--sweep {key}: `{words}` is not a list of YAML values: {said}") from None
    if len({yaml12.inline(value) for value in values}) < len(values):
        raise RecipeError(f"--sweep {text}: a value stands there twice")
    return Axis(key, values)


def _range(text: str) -> list[int]:
    """The seeds of `A-B`, `A` or `A,B,C`."""
    if found := re.fullmatch(r"(\d+)-(\d+)", text):
        first, last = int(found[1]), int(found[2])
        if first <= last < first + _MOST:
            return list(range(first, last + 1))
    elif re.fullmatch(r"\d+(,\d+)*", text):
        seeds = [int(word) for word in text.split(",")]
        if len(set(seeds)) == len(seeds):
            return seeds
    raise RecipeError(f"--seeds {text}: not a range such as 0-2 or a list such as 0,1,5")


def _ends(keys: Sequence[str]) -> list[str]:
    """The last parts of keys, or as many as tell them apart."""
    short = [key.rpartition(".")[2] for key in keys]
    return [end if short.count(end) == 1 else key for end, key in zip(short, keys, strict=True)]


def _plain(word: str) -> str:
    """A value as part of a folder's name: nothing that a shell or a file system takes amiss."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", word).strip("_.") or "_"
