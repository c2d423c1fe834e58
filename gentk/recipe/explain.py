"""A resolved recipe put into words: as YAML that loads back, with every value's origin and meaning, as differences."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final, NamedTuple

from pydantic import BaseModel

from gentk.recipe import yaml12
from gentk.recipe.fields import fields, leaves
from gentk.recipe.load import Loaded
from gentk.recipe.yaml12 import dotted

# What a recipe says about itself; none of it changes what a run computes.
CLAIMS = {"about", "default", "expect", "needs", "paper", "size"}
_COLUMN = 44  # comments start here, or two places after a longer value


class _Absent:
    def __repr__(self) -> str:
        return "-"


ABSENT: Final = _Absent()
"""The value of a key in a recipe that has no such key."""


class Difference(NamedTuple):
    """A key whose value is not the same in two recipes; `ABSENT` where one has no such key."""

    path: str
    a: Any
    b: Any


def dump(recipe: BaseModel) -> str:
    """The resolved recipe as YAML, defaults included. `load` gives back an equal recipe."""
    return yaml12.dump(recipe.model_dump())


def full(loaded: Loaded) -> str:
    """Every key with its value and, in a comment, where that is from and what it means. Itself a recipe in YAML."""
    lines = [f"# {loaded.source}, every key: value, where it is from, what it means"]
    for item in fields(loaded.recipe):
        key = "  " * (len(item.path) - 1) + yaml12.inline(item.path[-1]) + ":"
        if item.section:
            lines.append(_commented(key, item.description))
        else:
            words = filter(None, (loaded.origins[dotted(item.path)], item.description))
            lines.append(_commented(f"{key} {yaml12.inline(item.value)}", "; ".join(words)))
    return "\n".join(lines) + "\n"


def diff(a: BaseModel, b: BaseModel) -> list[Difference]:
    """The keys that differ between two resolved recipes: first those of `a` in its order, then those only `b` has."""
    mine, theirs = _flat(a), _flat(b)
    return [
        Difference(path, mine.get(path, ABSENT), theirs.get(path, ABSENT))
        for path in dict.fromkeys([*mine, *theirs])
        if mine.get(path, ABSENT) != theirs.get(path, ABSENT)
    ]


def digest(recipe: BaseModel) -> str:
    """8 hex digits of what the recipe computes: equal recipes share them, and a changed claim or comment keeps them."""
    computed = recipe.model_dump(exclude=CLAIMS)
    canonical = json.dumps(computed, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:8]


def _commented(line: str, comment: str) -> str:
    return f"{line.ljust(_COLUMN - 2)}  # {comment}" if comment else line


def _flat(recipe: BaseModel) -> dict[str, Any]:
    return {dotted(leaf.path): leaf.value for leaf in leaves(recipe) if leaf.value != {}}
