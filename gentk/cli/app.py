"""The command `gentk`: one sub-command per task that has a method, and those that look at recipes, models and runs.

No torch here: help, listings and everything that can be wrong with a command come before the slow imports. Annotations
are evaluated where they stand (no `from __future__ import annotations`): Typer reads them, and the tasks' commands are
made in a loop.
"""

from typing import Annotated, Any

import typer

from gentk import __version__
from gentk.cli import (
    aligning,
    commands,
    console,
    distilling,
    doctor,
    measuring,
    models,
    purifying,
    recipes,
    restoring,
    running,
    runs,
    sampling,
    slurm,
)
from gentk.recipe import registry

# Options that one task alone has, and what turns them into the method and keys of its recipe.
_OWN: dict[str, Any] = {
    "align": (aligning.OPTIONS, aligning.understood),
    "distill": (distilling.OPTIONS, distilling.understood),
    "sample": (sampling.OPTIONS, sampling.understood),
    "evaluate": (measuring.OPTIONS, measuring.understood),
    "purify": (purifying.OPTIONS, purifying.understood),
    "restore": (restoring.OPTIONS, restoring.understood),
}

_USUAL = {"purify": "purify-pp"}  # the method of a command that names none

app = typer.Typer(
    name="gentk",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 failed, 2 the command or recipe is wrong, 3 a file is absent, "
    "75 stopped: run again to go on.",
)


def _version(asked: bool) -> None:
    if asked:
        console.out(f"gentk {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Fast and robust generative models: train, distil, sample and measure."""


for _task, _help in registry.tasks().items():
    _lines = "\n\n".join(f"{name}: {line}" for name, line in registry.methods(_task).items())
    _how: dict[str, Any] = {"own": _OWN.get(_task), "usual": _USUAL.get(_task)}
    app.command(_task, help=f"{_help}.\n\nMethods:\n\n{_lines}", short_help=_help)(
        commands.make(_task, running.perform, **_how)
    )
    slurm.tasks.command(_task, help=f"A batch file for `gentk {_task}`.", short_help=_help)(
        commands.make(_task, slurm.script, more=slurm.OPTIONS, **_how)
    )

app.add_typer(recipes.app, name="recipes", help="List, show, copy, check and compare recipes.")
app.add_typer(models.app, name="models", help="List, show, import and export models.")
app.add_typer(runs.app, name="runs", help="List, show and compare runs.")
app.add_typer(slurm.app, name="slurm", help="Batch files for Slurm.")
app.command("doctor")(doctor.doctor)
