"""Which of how many processes this one is, as torchrun and other launchers say in the environment. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

from gentk import __version__
from gentk.errors import RecipeError

if TYPE_CHECKING:
    from gentk.engine.run import Job

_NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def size() -> int:
    """The number of processes; 1 where nothing has launched several.

    Raises RecipeError for an environment that says only half of it.
    """
    n = _number("WORLD_SIZE", 1)
    if n <= 1 or "RANK" not in os.environ:  # some clusters set WORLD_SIZE in every job
        return 1
    absent = [name for name in _NEEDED if not os.environ.get(name)]
    if absent:
        raise RecipeError(
            f"environment: WORLD_SIZE={n}, but {', '.join(absent)} is not set",
            hint="torchrun --nproc-per-node N -m gentk ... sets all; for one process: unset WORLD_SIZE",
        )
    return n


def rank() -> int:
    """The number of this process, from 0."""
    return _number("RANK", 0) if size() > 1 else 0


def local_rank() -> int:
    """Its number on this machine, which is that of its device."""
    return _number("LOCAL_RANK", rank()) if size() > 1 else 0


def timeout() -> float:
    """Seconds that a process waits for another before it gives up: $GENTK_DIST_TIMEOUT, or ten minutes."""
    return float(_number("GENTK_DIST_TIMEOUT", 600))


@contextmanager
def together(job: Job) -> Iterator[None]:
    """What every command that runs a task is wrapped in: of several processes all meet, and the first alone speaks.

    Raises RecipeError where they have not been given the same command, RunFailed where some stay away. What ends the
    block is for the caller to say, unless the error is `told`.
    """
    if size() == 1 or job.dry_run:
        with _silent():
            yield
        return
    with _silent():
        from gentk.engine import dist

        with dist.joined(_facts(job), job.device):
            yield


@contextmanager
def _silent() -> Iterator[None]:
    with ExitStack() as stack:
        if rank():
            sink = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(sink))
            stack.enter_context(redirect_stderr(sink))
        yield


def _facts(job: Job) -> dict[str, Any]:
    """What must be alike in all processes, by what it is called in a message."""
    import torch

    versions = {"gentk's version": __version__, "torch's version": torch.__version__}
    how = {"task": job.task, "--out": str(job.out), "--resume/--fresh": job.mode}
    return versions | how | dict(_flat(job.recipe.model_dump(mode="json"), "recipe: "))


def _flat(section: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{place}{name}.")
        else:
            yield place + name, value


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    try:
        return int(text)
    except ValueError as e:
        raise RecipeError(f"environment: {name}={text} is not a number") from e
