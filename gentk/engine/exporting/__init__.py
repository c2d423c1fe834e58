"""Exporting models: the same function in a form that other programs load, checked by loading it again.

No torch here: what can be wrong with a command is said before the slow imports of the module that writes the format.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gentk.errors import RecipeError, RunFailed, did_you_mean
from gentk.recipe.stamp import read_header
from gentk.recipe.store import model_path

Dtype = Literal["float32", "float16", "bfloat16"]
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")

FOLDER_MARK = "gentk.json"  # what an exported folder holds, and so what tells one from a folder of the user's

_KINDS = ("denoiser", "generator")
_DERIVED = ("parameters", "bytes")  # what `read_header` counts; the rest is in the file


@dataclass(frozen=True)
class Format:
    """How a format is written: the module here with `write(source, place) -> Written`; `suffix` "" means a folder.

    `about` is one line for `--help`.
    """

    module: str
    suffix: str
    about: str


FORMATS = {
    "safetensors": Format("weights", ".safetensors", "weights with gentk's header"),
    "torch-export": Format("program", ".pt2", "a program for torch.export.load, which needs torch alone"),
    "onnx": Format("graph", ".onnx", "for onnxruntime and others; needs gentk[export]"),
    "diffusers": Format("pipeline", "", "a folder for diffusers' from_pretrained; needs gentk[t2i]"),
}


@dataclass(frozen=True)
class Source:
    """The model to export: as the user named it, its file, the file's header, the data type asked for (safetensors)."""

    ref: str
    path: Path
    header: dict[str, Any]
    dtype: Dtype | None = None

    @property
    def own_header(self) -> dict[str, Any]:
        """The header as it is in the file, without what is counted on reading."""
        return {name: value for name, value in self.header.items() if name not in _DERIVED}

    @property
    def facts(self) -> dict[str, str]:
        """The header as texts: strings as they are, the rest as JSON."""
        return {k: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in self.own_header.items()}


@dataclass(frozen=True)
class Written:
    """What the check of an export found: its largest difference from the model, and the largest that was allowed.

    Of a generator's samples, or of a denoiser's x0 over max(1, sigma): its input grows so, and its rounding with it.
    """

    difference: float
    tolerance: float


@dataclass(frozen=True)
class Exported:
    """An export that is in its place: `bytes` of the file, or of all files of the folder."""

    path: Path
    format: str
    bytes: int
    difference: float
    tolerance: float


def export(ref: str, form: str, out: Path, *, dtype: str | None = None, force: bool = False) -> Exported:
    """Writes the model `ref` in the format `form` to `out`, whole or not at all, after it was loaded and compared.

    `dtype` is the data type of the weights (safetensors only; None: as they are). Raises RecipeError for a command that
    is wrong or a model that the format cannot hold, MissingAsset for an absent model or package, RunFailed where the
    disk refuses or the export computes something else than the model.
    """
    if form not in FORMATS:
        raise RecipeError(f"--to {form}: no such format{did_you_mean(form, FORMATS)}", hint=f"one of {_listed()}")
    chosen = FORMATS[form]
    source = Source(ref, model_path(ref), {}, _dtype(form, dtype))
    _check_place(source, chosen, out, force=force)
    header = read_header(source.path)
    if header["kind"] not in _KINDS:
        raise RecipeError(
            f"`{ref}` is a {header['kind']}, what is exported is a generator or a denoiser", hint="gentk models list"
        )
    source = Source(ref, source.path, header, source.dtype)
    text = "pipeline" in header
    if text and form != "diffusers":
        raise refuse(source, form, "a text-to-image model is a whole pipeline", works=("diffusers",))
    writer = importlib.import_module(f"gentk.engine.exporting.{'text_pipeline' if text else chosen.module}")
    with _in_place(out) as temporary:
        written: Written = writer.write(source, temporary)
        if not written.difference <= written.tolerance:  # so that NaN fails too
            raise RunFailed(
                f"`{ref}` as {form}: loaded again it differs by {written.difference:.3g}, "
                f"{written.tolerance:.3g} is allowed; nothing was written",
                hint=f"export it as one of {_listed(but=form)}, and report this",
            )
        size = sum(p.stat().st_size for p in (temporary, *temporary.rglob("*")) if p.is_file())
    return Exported(out, form, size, written.difference, written.tolerance)


def refuse(source: Source, form: str, why: str, *, works: tuple[str, ...] = ()) -> RecipeError:
    """The error for a model that a format cannot hold, naming those that can."""
    names = works or tuple(name for name in FORMATS if name != form)
    return RecipeError(f"`{source.ref}` as {form}: {why}", hint=f"these work: {', '.join(names)}")


def _dtype(form: str, dtype: str | None) -> Dtype | None:
    if dtype is None:
        return None
    for known in DTYPES:
        if dtype == known:
            if form != "safetensors":
                raise RecipeError(f"--dtype is for safetensors, {form} computes in float32", hint="leave it out")
            return known
    raise RecipeError(f"--dtype {dtype}: not one of {', '.join(DTYPES)}{did_you_mean(dtype, DTYPES)}")


def _check_place(source: Source, form: Format, out: Path, *, force: bool) -> None:
    """Raises RecipeError where `out` is not a name of this format, or holds what must not be replaced."""
    if form.suffix and out.suffix != form.suffix:
        raise RecipeError(f"--out {out}: must end in {form.suffix}", hint=f"--out {out.with_suffix(form.suffix)}")
    if not out.name:
        raise RecipeError(f"--out {out}: has no name of its own", hint=f"--out exported{form.suffix}")
    if not os.path.lexists(out):
        return
    if out.exists() and out.samefile(source.path):
        raise RecipeError(f"--out {out}: is the model itself", hint="choose another --out")
    if out.is_dir() and (form.suffix or not (out / FOLDER_MARK).is_file()):
        raise RecipeError(f"--out {out}: is a folder that gentk did not export", hint="choose another --out")
    if not out.is_dir() and not form.suffix:
        raise RecipeError(f"--out {out}: is a file, this format is a folder", hint="choose another --out")
    if not force:
        raise RecipeError(f"--out {out}: exists", hint="--force replaces it")


@contextmanager
def _in_place(out: Path) -> Iterator[Path]:
    """A name beside `out` that becomes `out` when the block ends well, and is gone when it does not."""
    temporary = out.with_name(f".{os.getpid()}.{out.name}")  # in front: readers go by the suffix
    aside = out.with_name(f".{os.getpid()}.old.{out.name}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if out.is_dir():  # no rename replaces a folder that holds something
            out.replace(aside)
        temporary.replace(out)
    except OSError as e:
        raise RunFailed(
            f"{out}: cannot be written: {e.strerror or e}", hint="free disk space or choose another --out"
        ) from e
    finally:
        if os.path.lexists(aside) and not os.path.lexists(out):  # stopped between the two renames
            aside.replace(out)
        for left in (temporary, aside):
            _remove(left)


def _remove(path: Path) -> None:
    with suppress(OSError):  # what refused the export may refuse this too: the first reason is the one to tell
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _listed(*, but: str = "") -> str:
    return ", ".join(name for name in FORMATS if name != but)
