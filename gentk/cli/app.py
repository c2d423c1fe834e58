"""The command `gentk`: one sub-command per task that has a method, and those that look at recipes, models and runs.

No torch here: help, listings and everything that can be wrong with a command come before the slow imports. Annotations
are evaluated where they stand (no `from __future__ import annotations`): Typer reads them, and the tasks' commands are
made in a loop.
"""

import inspect
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from gentk import __version__
from gentk.cli import aligning, console, doctor, measuring, models, options, purifying, recipes, restoring, runs, sampling
from gentk.errors import RecipeError
from gentk.recipe import registry

# Options that one task alone has, and what turns them into the method and keys of its recipe.
_OWN: dict[str, Any] = {
    "align": (aligning.OPTIONS, aligning.understood),
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


def _command(task: str) -> Callable[..., None]:
    """The function behind `gentk TASK`, with the task's own options in its signature."""

    def complete(incomplete: str) -> Iterator[str]:
        return (name for name in registry.methods(task) if name.startswith(incomplete))

    def command(
        method: Annotated[str | None, typer.Argument(metavar="[METHOD]", autocompletion=complete)] = None,
        recipe: options.Recipe = None,
        sets: options.Sets = None,
        out: options.Out = None,
        resume: options.Resume = None,
        dry_run: options.DryRun = False,
        device: options.Device = "auto",
        seed: options.Seed = None,
        quiet: options.Quiet = False,
        json: options.Json = False,
        **own: Any,
    ) -> None:
        with console.guard():
            console.quiet(quiet)
            if device not in ("auto", "cpu", "cuda"):
                raise RecipeError(f"--device {device}: not one of auto, cpu, cuda")
            given = {"seed": seed, **own}
            if task in _OWN:
                method = _OWN[task][1](method, given)
            mode = {None: "auto", True: "resume", False: "fresh"}[resume]
            loaded = _recipe(task, method, recipe, sets or [], {k: v for k, v in given.items() if v is not None})
            _run(task, loaded, out, mode, device=device, quiet=quiet, dry_run=dry_run, json=json)

    shared = [p for p in inspect.signature(command).parameters.values() if p.name != "own"]
    kinds = {name: options.subject(name) for name in registry.subjects(task)} | (_OWN[task][0] if task in _OWN else {})
    own = [inspect.Parameter(k, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=v) for k, v in kinds.items()]
    shared[1:] = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in shared[1:]]
    command.__signature__ = inspect.Signature([shared[0], *own, *shared[1:]])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in [*shared, *own]}
    return command


def _recipe(task: str, method: str | None, recipe: str | None, sets: list[str], given: dict[str, Any]) -> Any:
    """The recipe that a command means, loaded with its options. Raises RecipeError for whatever does not fit."""
    from gentk.recipe import load, store, teachers

    if recipe is not None:
        path = store.find(recipe)
    else:
        method = method or _USUAL.get(task)
        if method is None:
            raise RecipeError(f"gentk {task}: which method?", hint=f"methods: {', '.join(registry.methods(task))}")
        registry.method_module(task, method)  # says what is close when there is no such method
        subject = registry.subject(task, method)
        for other in registry.subjects(task):
            if other != subject and other in given:
                raise RecipeError(f"--{other}: `gentk {task} {method}` works on a {subject}", hint=f"--{subject} NAME")
        path, swapped = store.pick(task, method, given.get(subject))
        if swapped:
            console.note(f"{store.name(path)} with {subject} {given[subject]}")
        else:
            given.pop(subject, None)  # the recipe was found by it
    loaded = load.load(path, sets, overrides=given)
    chosen = loaded.recipe
    if chosen.task != task or (method is not None and chosen.method.name != method):
        wanted = f"{task} {method}" if method else task
        raise RecipeError(f"--recipe {recipe}: is for `gentk {chosen.task} {chosen.method.name}`, not `gentk {wanted}`")
    what = getattr(chosen, registry.subject(task, chosen.method.name))
    if what in teachers.NAMES:
        store.model_path(what)  # says how to import it before torch is loaded
    return loaded


def _folder(task: str, recipe: Any) -> Path:
    """The run folder of a command that names none: the same command finds it again."""
    from gentk.recipe.explain import digest

    what = getattr(recipe, registry.subject(task, recipe.method.name))
    name = Path(what if isinstance(what, str) else what.name).name.removesuffix(".safetensors")
    slug = "".join(c if c.isalnum() else "-" for c in name).strip("-")
    return Path("runs") / f"{task}-{recipe.method.name}-{slug}-{digest(recipe)}"


def _run(task: str, loaded: Any, out: Path | None, mode: Any, *, json: bool, **how: Any) -> None:
    """Runs a task and prints its answer: the run folder on stdout, or one JSON object."""
    from gentk.engine.run import Job

    folder = out or _folder(task, loaded.recipe)
    job = Job(task, loaded, folder, mode, command=shlex.join(["gentk", *sys.argv[1:]]), **how)
    outcome = registry.task_module(task).run(job)
    if json:
        console.as_json(
            {
                "task": task,
                "method": loaded.recipe.method.name,
                "recipe": job.name,
                "run": None if outcome.run is None else str(outcome.run),
                "status": outcome.status,
                "seconds": outcome.seconds,
                "metrics": outcome.metrics,
            }
        )
        return
    if outcome.answer:
        console.out(outcome.answer)
    if outcome.run is not None:
        for name, value in outcome.metrics.items():
            console.note(f"  {name:24} {value:.6g}")
        if (outcome.run / "report.html").exists():
            console.note(f"report: {outcome.run / 'report.html'}")
        console.out(str(outcome.run))


for _task, _help in registry.tasks().items():
    _lines = "\n\n".join(f"{name}: {line}" for name, line in registry.methods(_task).items())
    app.command(_task, help=f"{_help}.\n\nMethods:\n\n{_lines}", short_help=_help)(_command(_task))

app.add_typer(recipes.app, name="recipes", help="List, show, copy, check and compare recipes.")
app.add_typer(models.app, name="models", help="List, show, import and export models.")
app.add_typer(runs.app, name="runs", help="List, show and compare runs.")
app.command("doctor")(doctor.doctor)
