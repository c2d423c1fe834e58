"""A task's command, made from what its folder says: its signature for Typer, and the recipes that the words mean.

What is done with them is the caller's: `running.perform` runs them, `slurm.script` writes a batch file that does. No
torch here, and no `from __future__ import annotations`: Typer reads the annotations where they stand.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from gentk.cli import console, options, sweeping
from gentk.engine import world
from gentk.errors import RecipeError
from gentk.recipe import registry


@dataclass(frozen=True)
class Asked:
    """A command, understood: what it names of the recipe, and one point per run with its recipe loaded.

    `words` are the task's own arguments as they were typed, in order, without those that a sweep changes.
    """

    task: str
    points: list[tuple[sweeping.Point, Any]]
    swept: bool
    out: Path
    words: list[str]
    mode: Any = "auto"
    how: dict[str, Any] = field(default_factory=dict)

    def folder(self, point: sweeping.Point) -> Path:
        """The run folder of a point."""
        return self.out / point.name if self.swept else self.out


Act = Callable[..., None]


def make(
    task: str,
    act: Act,
    *,
    own: tuple[dict[str, Any], Callable[[str | None, dict[str, Any]], str | None]] | None = None,
    usual: str | None = None,
    more: Mapping[str, Any] | None = None,
) -> Callable[..., None]:
    """The function behind `gentk ... TASK`, with the task's own options in its signature.

    own: options that one task alone has and what turns them into the method and keys of its recipe. usual: the method
    of a command that names none. more: options of the caller, handed to `act(asked, **more)`.
    """
    named, understood = own or ({}, lambda method, given: method)
    kinds = {name: options.subject(name) for name in registry.subjects(task)} | named
    seeds = "seeds" not in kinds  # `gentk sample --seeds` counts samples: there a sweep says --sweep seed=0,1,2
    more = more or {}

    def complete(incomplete: str) -> Iterator[str]:
        return (name for name in registry.methods(task) if name.startswith(incomplete))

    def command(
        method: Annotated[str | None, typer.Argument(metavar="[METHOD]", autocompletion=complete)] = None,
        recipe: options.Recipe = None,
        sets: options.Sets = None,
        sweep: options.Sweep = None,
        out: options.Out = None,
        resume: options.Resume = None,
        dry_run: options.DryRun = False,
        device: options.Device = "auto",
        seed: options.Seed = None,
        quiet: options.Quiet = False,
        json: options.Json = False,
        **rest: Any,
    ) -> None:
        with console.guard():
            console.quiet(quiet or world.rank() > 0)  # of several processes the first speaks
            if device not in ("auto", "cpu", "cuda"):
                raise RecipeError(f"--device {device}: not one of auto, cpu, cuda")
            theirs = {name: rest.pop(name) for name in more}
            over = rest.pop("run_seeds") if seeds else None
            typed = {"recipe": recipe, "sets": sets, "device": None if device == "auto" else device, "seed": seed}
            words = [*([method] if method else []), *_words({**kinds, **_SHARED}, {**rest, **typed})]
            axes = sweeping.axes(sweep or [], over)
            if seed is not None and any(axis.key == "seed" for axis in axes):
                raise RecipeError("--seed and a sweep over seeds both say which", hint="give one of them")
            given = {"seed": seed, **rest}
            chosen = understood(method, given)
            name = chosen or (None if recipe else usual)  # a recipe says its method itself
            kept = {k: v for k, v in given.items() if v is not None}
            points = [
                (point, load(task, name, recipe, [*(sets or []), *point.sets], dict(kept), tell=not k))
                for k, point in enumerate(sweeping.points(axes))
            ]
            folder = out or (_shared(task, points, words) if axes else folder_of(task, points[0][1].recipe))
            mode = {None: "auto", True: "resume", False: "fresh"}[resume]
            how = {"device": device, "quiet": quiet, "dry_run": dry_run, "json": json}
            act(Asked(task, points, bool(axes), folder, words, mode, how), **theirs)

    signature = [p for p in inspect.signature(command).parameters.values() if p.name != "rest"]
    extra = kinds | ({"run_seeds": options.RunSeeds} if seeds else {}) | dict(more)
    keyword = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(k, keyword, default=_default(v), annotation=_bare(v)) for k, v in extra.items()]
    signature[1:] = [*added, *(p.replace(kind=keyword) for p in signature[1:])]
    command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in signature}
    return command


_SHARED = {"recipe": options.Recipe, "sets": options.Sets, "device": options.Device, "seed": options.Seed}


def _default(option: Any) -> Any:
    """The default of an option: None, or what a pair (annotation, default) says."""
    return option[1] if isinstance(option, tuple) else None


def _bare(option: Any) -> Any:
    return option[0] if isinstance(option, tuple) else option


def _words(kinds: Mapping[str, Any], values: Mapping[str, Any]) -> list[str]:
    """The values as a command line would say them: positional ones as they are, options by their names."""
    words: list[str] = []
    for name, value in values.items():
        said = kinds[name].__metadata__[0]
        if value is None or value is False:
            continue
        if isinstance(said, typer.models.ArgumentInfo):
            words += [str(each) for each in value]
            continue
        called = [each for each in (said.default, *(said.param_decls or ())) if isinstance(each, str)]
        option = called[0] if called else "--" + name.replace("_", "-")  # Typer keeps the first name as a default
        for each in value if isinstance(value, list | tuple) else [value]:
            words += [option] if each is True else [option, str(each)]
    return words


def load(
    task: str, method: str | None, recipe: str | None, sets: list[str], given: dict[str, Any], *, tell: bool = True
) -> Any:
    """The recipe that a command means, loaded with its options; `tell`: say which one where that is not plain.

    Raises RecipeError for whatever does not fit.
    """
    from gentk.recipe import load as loading
    from gentk.recipe import store, teachers

    if recipe is not None:
        path = store.find(recipe)
    else:
        if method is None:
            raise RecipeError(f"gentk {task}: which method?", hint=f"methods: {', '.join(registry.methods(task))}")
        registry.method_module(task, method)  # says what is close when there is no such method
        subject = registry.subject(task, method)
        for other in registry.subjects(task):
            if other != subject and other in given:
                raise RecipeError(f"--{other}: `gentk {task} {method}` works on a {subject}", hint=f"--{subject} NAME")
        path, swapped = store.pick(task, method, given.get(subject))
        if swapped:
            if tell:
                console.note(f"{store.name(path)} with {subject} {given[subject]}")
        else:
            given.pop(subject, None)  # the recipe was found by it
    loaded = loading.load(path, sets, overrides=given)
    chosen = loaded.recipe
    if chosen.task != task or (method is not None and chosen.method.name != method):
        wanted = f"{task} {method}" if method else task
        raise RecipeError(f"--recipe {recipe}: is for `gentk {chosen.task} {chosen.method.name}`, not `gentk {wanted}`")
    what = getattr(chosen, registry.subject(task, chosen.method.name))
    if what in teachers.NAMES:
        store.model_path(what)  # says how to import it before torch is loaded
    return loaded


def folder_of(task: str, recipe: Any) -> Path:
    """The run folder of a command that names none: the same command finds it again."""
    from gentk.recipe.explain import digest

    return Path("runs") / f"{task}-{recipe.method.name}-{_slug(task, recipe)}-{digest(recipe)}"


def _shared(task: str, points: list[tuple[sweeping.Point, Any]], words: list[str]) -> Path:
    """The folder of a sweep that names none: more values of the same keys find it again."""
    import hashlib

    recipe = points[0][1].recipe
    keys = sorted({text.partition("=")[0] for point, _ in points for text in point.sets})
    digest = hashlib.sha256("\0".join([*words, "", *keys]).encode()).hexdigest()[:8]
    return Path("runs") / f"sweep-{task}-{recipe.method.name}-{_slug(task, recipe)}-{digest}"


def _slug(task: str, recipe: Any) -> str:
    what = getattr(recipe, registry.subject(task, recipe.method.name))
    name = Path(what if isinstance(what, str) else what.name).name.removesuffix(".safetensors")
    return "".join(c if c.isalnum() else "-" for c in name).strip("-")
