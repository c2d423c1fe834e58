"""Tasks and methods, found by scanning `gentk/tasks`: a folder is a task, a file in it is a method.

A task's `__init__.py` holds its help line (the docstring), `SUBJECT` (the option that names what the method works on),
`Recipe` (a generic pydantic model) and `run`. A method's file holds its help line, `Config` and what builds it, and a
`SUBJECT` and `Recipe` of its own where it works on something else than the others of its task. Files that begin with an
underscore are shared by the methods of one task. None of them imports torch at module level, so that the command line
can list, show and check everything in a moment.
"""

from __future__ import annotations

import ast
import importlib
import keyword
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gentk
from gentk.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from pydantic import BaseModel

_HERE = Path(gentk.__file__).parent / "tasks"  # named by its place, not imported: tasks stand far above this floor


def _name(path: Path) -> str:
    return path.stem.removesuffix("_").replace("_", "-")


def _stem(name: str) -> str:
    """The module's name; the method `is` lives in `is_.py`, as Python's keywords do."""
    return name.replace("-", "_") + "_" * keyword.iskeyword(name)


def _help(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0].rstrip(".")


@cache
def tasks() -> dict[str, str]:
    """Name -> help line of every task that has a method."""
    return {
        _name(p): _help(p / "__init__.py")
        for p in sorted(_HERE.iterdir())
        if (p / "__init__.py").exists() and methods(_name(p))
    }


@cache
def subject(task: str, method: str | None = None) -> str:
    """Name of the option that says what a task's methods work on, or what this method does where it names its own.

    Read without importing the task.
    """
    folder = _HERE / task.replace("-", "_")
    own = None if method is None else _named(folder / f"{_stem(method)}.py")
    found = own or _named(folder / "__init__.py")
    if found is None:
        raise AttributeError(f"task {task} names no SUBJECT")
    return found


@cache
def subjects(task: str) -> tuple[str, ...]:
    """Every such option of a task, the task's own first."""
    return tuple(dict.fromkeys((subject(task), *(subject(task, method) for method in methods(task)))))


def _named(path: Path) -> str | None:
    for node in ast.parse(path.read_text("utf-8")).body if path.exists() else ():
        match node:
            case ast.Assign(targets=[ast.Name(id="SUBJECT")], value=ast.Constant(value=option)):
                return str(option)
    return None


@cache
def methods(task: str) -> dict[str, str]:
    """Name -> help line of every method of a task."""
    folder = _HERE / task.replace("-", "_")
    return {_name(p): _help(p) for p in sorted(folder.glob("*.py")) if not p.name.startswith("_")}


def task_module(task: str) -> Any:
    """The package of a task. Raises RecipeError for an unknown one."""
    if task not in tasks():
        raise RecipeError(f"unknown task `{task}`{did_you_mean(task, tasks())}", hint="gentk --help lists the tasks")
    return importlib.import_module(f"gentk.tasks.{task.replace('-', '_')}")


def method_module(task: str, method: str) -> Any:
    """The module of a method. Raises RecipeError for an unknown one."""
    task_module(task)
    if method not in methods(task):
        raise RecipeError(
            f"`gentk {task}` has no method `{method}`{did_you_mean(method, methods(task))}",
            hint=f"methods: {', '.join(methods(task))}",
        )
    return importlib.import_module(f"gentk.tasks.{_stem(task)}.{_stem(method)}")


def recipe_schema(task: str, method: str) -> type[BaseModel]:
    """The pydantic model that a recipe of this task and method must satisfy."""
    module = method_module(task, method)
    schema: type[BaseModel] = getattr(module, "Recipe", task_module(task).Recipe)[module.Config]
    return schema
