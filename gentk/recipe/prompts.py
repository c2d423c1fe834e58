"""Prompts and how a text-to-image model is run: the sections of recipes, and files of prompts. No torch here."""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from gentk.errors import GentkError, MissingAsset, RecipeError
from gentk.recipe.section import Section

Dtype = Literal["float32", "bfloat16", "float16"]


class Latent(Section):
    """How a text-to-image model is run."""

    size: PositiveInt | None = Field(None, description="side of the images in pixels; null: the model's own")
    dtype: Dtype = Field("float32", description="of the network and of the text encoders")
    decode: Dtype = Field("float32", description="of the VAE; float16 overflows in some")
    t5: bool = Field(True, description="SD3 with its T5, the largest of three encoders; false: zeros in its place")
    cache: bool = Field(True, description="keep the embeddings of prompts on disk")


class PromptSource(Section):
    """Where prompts come from: written here, or a file with one for each line or record."""

    text: tuple[str, ...] = Field((), description="the prompts themselves")
    file: str | None = Field(None, description=".txt (a prompt a line), .jsonl, .json (records), .csv or .parquet")
    column: str = Field("prompt", description="key of the prompt in a record")
    per_prompt: PositiveInt = Field(1, description="images of each prompt, one after the other")
    negative: str = Field("", description="what guidance leads away from; empty: the null prompt")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if bool(self.text) == (self.file is not None):
            raise ValueError("give `text` or `file`, one of the two")
        return self


@dataclass(frozen=True)
class Record:
    """A prompt, and what else its record holds (GenEval's `tag`, `include`, ...)."""

    text: str
    values: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def read(source: PromptSource) -> tuple[Record, ...]:
    """The prompts of a section, in order; not multiplied by `per_prompt`.

    Raises MissingAsset where there is no such file, RecipeError for an empty prompt, an empty file, or a record without
    a prompt, naming the line.
    """
    if source.file is None:
        if (bad := next((k for k, text in enumerate(source.text, 1) if not text.strip()), 0)) != 0:
            raise RecipeError(f"prompts.text: prompt {bad} is empty", hint="leave it out; a null prompt needs no name")
        return tuple(Record(text.strip()) for text in source.text)
    return of_file(Path(source.file).expanduser(), source.column)


def of_file(path: Path, column: str = "prompt") -> tuple[Record, ...]:
    """The prompts of a file by its suffix: .jsonl, .json, .csv, .parquet, lines for any other. Raises as `read`."""
    if not path.is_file():
        raise MissingAsset(
            f"{path}: no such file", hint=".txt, .json, .jsonl, .csv or .parquet with one prompt for each image"
        )
    if path.suffix == ".parquet":
        return tuple(_record(path, "record", k, each, column) for k, each in enumerate(_rows(path, column), 1))
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise GentkError(f"{path}: cannot be read as prompts: not a text file in UTF-8", hint="save it so") from error
    found: list[tuple[int, Any]]  # line or record, and what stands there
    try:
        match path.suffix:
            case ".json":
                unit, found = "record", list(enumerate(json.loads(text), 1))
            case ".jsonl":
                unit, found = "line", [(k, _parsed(path, k, line)) for k, line in _lines(path, text)]
            case ".csv":
                unit, found = "record", list(enumerate(csv.DictReader(io.StringIO(text)), 1))
            case _:
                return tuple(Record(line.strip()) for _, line in _lines(path, text))
    except (ValueError, TypeError) as error:
        raise GentkError(f"{path}: cannot be read as prompts: {error}", hint="records with a key `prompt`") from error
    if not found:
        raise RecipeError(f"{path}: empty", hint="one prompt for each image")
    return tuple(_record(path, unit, k, each, column) for k, each in found)


def _rows(path: Path, column: str) -> list[dict[str, Any]]:
    """The records of a parquet file, the form that data sets have on the hub: that column alone, images may lie beside.

    Raises MissingAsset without pyarrow, GentkError for what it cannot read, RecipeError where there are no rows.
    """
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise MissingAsset(
            f"{path}: {error}", hint="pip install pyarrow, or save the column as .csv or .txt"
        ) from error
    try:
        names = parquet.read_schema(path).names
        found = parquet.read_table(path, columns=[column])[column].to_pylist() if column in names else None
    except (OSError, ValueError) as error:
        raise GentkError(f"{path}: cannot be read as prompts: {error}", hint="fetch or write it again") from error
    if found is None:
        raise GentkError(
            f"{path}: cannot be read as prompts: no column `{column}`; it has {', '.join(names)}",
            hint="--set prompts.column=NAME",
        )
    if not found:
        raise RecipeError(f"{path}: empty", hint="one prompt for each image")
    return [{column: text} for text in found]


def _lines(path: Path, text: str) -> list[tuple[int, str]]:
    """Every line with its number. Blank ones are errors: which image belongs to which prompt is told by their order."""
    lines = list(enumerate(text.splitlines(), 1))
    if not text.strip():
        raise RecipeError(f"{path}: empty", hint="one prompt for each line")
    if (blank := next((k for k, line in lines if not line.strip()), 0)) != 0:
        raise RecipeError(f"{path}: line {blank} is blank", hint="one prompt for each line, none left out")
    return lines


def _parsed(path: Path, line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise GentkError(f"{path}: line {line}: not JSON: {error}", hint="one record for each line") from error


def _record(path: Path, unit: str, k: int, value: Any, column: str) -> Record:
    if not isinstance(value, dict) or not isinstance(value.get(column), str):
        has = f"; it has {', '.join(map(str, value))}" if isinstance(value, dict) else ""
        raise GentkError(
            f"{path}: {unit} {k}: cannot be read as prompts: no text under `{column}`{has}",
            hint="records with a key `prompt`",
        )
    if not value[column].strip():
        raise RecipeError(f"{path}: {unit} {k}: the prompt is blank", hint="one prompt for each image, none left out")
    return Record(value[column].strip(), {name: each for name, each in value.items() if name != column})
