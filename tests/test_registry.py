"""Tasks and methods as the folder `gentk/tasks` holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import gentk
from gentk.errors import RecipeError
from gentk.recipe import registry, store
from gentk.recipe.schema import Head

TASKS = {
    "train": "data",
    "train-ebm": "data",
    "distill": "teacher",
    "align": "generator",
    "sample": "model",
    "purify": "data",
    "restore": "data",
    "evaluate": "samples",
}
METHODS = [(task, method) for task in registry.tasks() for method in registry.methods(task)]


def test_every_task_has_a_help_line_a_subject_and_methods() -> None:
    assert set(registry.tasks()) == set(TASKS)
    for task, help_line in registry.tasks().items():
        assert len(help_line) > 10
        assert not help_line.endswith(".")
        assert "\n" not in help_line
        assert registry.methods(task)
        assert registry.subject(task) == TASKS[task]
        module = registry.task_module(task)
        assert module.__name__ == f"gentk.tasks.{task.replace('-', '_')}"
        assert registry.subject(task) == module.SUBJECT, "read from the text, it must be what the module says"
        assert issubclass(module.Recipe, Head)
        assert TASKS[task] in module.Recipe.model_fields
        assert callable(module.run)


@pytest.mark.parametrize(("task", "method"), METHODS)
def test_every_method_is_named_after_its_file(task: str, method: str) -> None:
    module = registry.method_module(task, method)
    assert Path(module.__file__).stem.removesuffix("_").replace("_", "-") == method
    assert get_args(module.Config.model_fields["name"].annotation) == (method,)
    assert registry.methods(task)[method] == module.__doc__.splitlines()[0].rstrip(".")
    assert len(registry.methods(task)[method]) > 10


@pytest.mark.parametrize(("task", "method"), METHODS)
def test_every_field_of_a_recipe_says_what_it_means(task: str, method: str) -> None:
    """`recipes show --full` prints descriptions: of the task's sections and of the method's own settings."""
    schema = registry.recipe_schema(task, method)
    assert schema.model_fields["method"].annotation is registry.method_module(task, method).Config
    silent, seen, todo = [], set(), [schema]
    while todo:
        section = todo.pop()
        seen.add(section)
        for name, field in section.model_fields.items():
            if name not in ("name", "task") and not field.description:
                silent.append(f"{section.__name__}.{name}")
            todo += [s for s in _sections(field.annotation) if s not in seen]
    assert silent == []
    assert len(seen) > 2


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [s for part in get_args(annotation) for s in _sections(part)]


def test_every_method_has_a_recipe() -> None:
    assert {(e.task, e.method) for e in store.recipes()} == set(METHODS)


def test_shared_files_are_no_methods() -> None:
    folder = Path(gentk.__file__).parent / "tasks"
    hidden = [p for p in folder.glob("*/_*.py") if p.name != "__init__.py"]
    assert hidden, "the rule has something to hide"
    for path in hidden:
        assert path.stem.replace("_", "-") not in registry.methods(path.parent.name)
        assert path.stem.lstrip("_").replace("_", "-") not in registry.methods(path.parent.name)


def test_a_new_file_is_a_new_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by scanning: a folder with a method is a task, one without is none, and `_` becomes `-`.

    Files are read, not run: a method that cannot be imported is listed like any other.
    """
    for name, text in {
        "paint/__init__.py": '"""Paint by numbers."""\nSUBJECT = "canvas"\n',
        "paint/oil_on_wood.py": '"""Slow and shiny: oil.\n\nMore."""\nimport no_such_package\n',
        "paint/_brush.py": '"""Shared."""\n',
        "empty/__init__.py": '"""Nothing here yet."""\n',
        "notes/idea.py": '"""No package."""\n',
        "__init__.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(registry, "_HERE", tmp_path)
    for cached in (registry.tasks, registry.methods, registry.subject):
        cached.cache_clear()
    try:
        assert registry.tasks() == {"paint": "Paint by numbers"}
        assert registry.methods("paint") == {"oil-on-wood": "Slow and shiny: oil"}
        assert registry.subject("paint") == "canvas"
        with pytest.raises(AttributeError, match="task empty names no SUBJECT"):
            registry.subject("empty")
        with pytest.raises(RecipeError, match="unknown task `pain`; did you mean `paint`"):
            registry.task_module("pain")
    finally:
        for cached in (registry.tasks, registry.methods, registry.subject):
            cached.cache_clear()


@pytest.mark.parametrize(("wrong", "close"), [("distil", "distill"), ("trian", "train"), ("evaluat", "evaluate")])
def test_an_unknown_task(wrong: str, close: str) -> None:
    for ask in (registry.task_module, lambda t: registry.method_module(t, "sim"), lambda t: _schema(t, "sim")):
        with pytest.raises(RecipeError, match=f"unknown task `{wrong}`; did you mean `{close}`") as failure:
            ask(wrong)
        assert failure.value.code == 2
        assert failure.value.hint


def _schema(task: str, method: str) -> Any:
    return registry.recipe_schema(task, method)


@pytest.mark.parametrize(
    ("task", "wrong", "close"),
    [
        ("distill", "simm", "; did you mean `sim`?"),
        ("distill", "diff_instruct", "; did you mean `diff-instruct`?"),
        ("sample", "hein", "; did you mean `heun`?"),
        ("distill", "_one_step", ""),  # a file, but not a method
        ("sample", "__init__", ""),
        ("evaluate", "denoiser", ""),  # of another task
        ("train", "../distill/sim", ""),
        ("train", "", ""),
    ],
)
def test_an_unknown_method(task: str, wrong: str, close: str) -> None:
    for ask in (registry.method_module, registry.recipe_schema):
        with pytest.raises(RecipeError) as failure:
            ask(task, wrong)
        assert str(failure.value) == f"`gentk {task}` has no method `{wrong}`{close}"
        assert failure.value.hint == f"methods: {', '.join(registry.methods(task))}"
