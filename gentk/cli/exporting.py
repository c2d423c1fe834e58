"""`gentk models export`: a model in a form that other programs load."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gentk.cli import console
from gentk.engine import exporting

_FORMS = "; ".join(f"{name}: {form.about}" for name, form in exporting.FORMATS.items())


@console.guard()
def export(
    model: Annotated[str, typer.Argument(metavar="RUN|NAME|FILE", help="A run folder, a shipped model or a file.")],
    to: Annotated[str, typer.Option(help=f"{_FORMS}.")],
    out: Annotated[Path, typer.Option(help="File or, for diffusers, folder to write.")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16 or bfloat16 weights (safetensors); else as they are.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier export left there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Answer with one JSON object.")] = False,
) -> None:
    """Write a one-step generator or a denoiser for other programs; each export is loaded again and compared."""
    done = exporting.export(model, to, out, dtype=dtype, force=force)
    if json:
        console.as_json({"model": model, **asdict(done), "path": str(done.path)})
        return
    console.note(f"loaded again, it differs by {done.difference:.3g} at most ({done.tolerance:.3g} allowed)")
    console.out(str(done.path))
