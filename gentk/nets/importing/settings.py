"""What a user says about a model beyond its file: `--set KEY=VALUE`, checked like a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from gentk.errors import RecipeError, did_you_mean
from gentk.recipe import schema

S = TypeVar("S", bound=schema.Section)
Shape = tuple[int, int, int]


class Settings:
    """The settings of one import: each is asked for once, what nobody asked for is a fault.

    `shape`: that of the data set named, None where it is not known.
    """

    def __init__(self, values: Mapping[str, Any], shape: Shape | None) -> None:
        self._values, self._shape = values, shape
        self._known: list[str] = []

    def given(self, key: str) -> bool:
        """Whether the user said it."""
        return key in self._values

    def section(self, kind: type[S], prefix: str, **defaults: Any) -> S:
        """The section with `PREFIX.KEY` of the user over `defaults`. Raises RecipeError for a value that is none."""
        keys = [key for key in kind.model_fields if key != "name"]
        self._known += [f"{prefix}.{key}" for key in keys]
        mine = {key: self._values[f"{prefix}.{key}"] for key in keys if f"{prefix}.{key}" in self._values}
        try:
            # through JSON, where the strict schemas take arrays for tuples
            return kind.model_validate_json(json.dumps(defaults | mine))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, (prefix, *first["loc"])))
            raise RecipeError(f"--set {place}: {first['msg'][0].lower()}{first['msg'][1:]}") from error

    def choice(self, key: str, options: tuple[str, ...], default: str) -> str:
        """One of `options`. Raises RecipeError for anything else."""
        self._known.append(key)
        value = self._values.get(key, default)
        if value not in options:
            close = did_you_mean(str(value), options)
            raise RecipeError(f"--set {key}={value}: not one of {', '.join(options)}{close}")
        return str(value)

    def number(self, key: str, default: int) -> int:
        """A whole number from 0 up. Raises RecipeError for anything else."""
        self._known.append(key)
        value = self._values.get(key, default)
        if type(value) is not int or value < 0:
            raise RecipeError(f"--set {key}={value}: not a whole number")
        return value

    def shape(self, channels: int) -> Shape:
        """The shape of a sample: the data set's, or `size` pixels and the channels that the file shows.

        Raises RecipeError where neither is said.
        """
        size = self.number("size", self._shape[1] if self._shape else 0)
        if not size:
            raise RecipeError(
                "the file does not say how large its images are", hint="--data NAME, or --set size=PIXELS"
            )
        return channels, size, size

    def finish(self) -> None:
        """Raises RecipeError for a setting that the format does not have."""
        for key in self._values:
            if key not in self._known:
                raise RecipeError(
                    f"--set {key}: no setting of this format{did_you_mean(key, self._known)}",
                    hint=f"settings: {', '.join(self._known) or 'none, the file says all'}",
                )
