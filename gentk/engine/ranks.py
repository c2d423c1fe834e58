"""A run folder in use by several processes: rank 0 opens it, writes and keeps its lock; the others are told of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from gentk.engine import dist, report
from gentk.engine.run import Job, Run
from gentk.errors import RunFailed

T = TypeVar("T")


@contextmanager
def opened(job: Job) -> Iterator[Run]:
    """`Run(job)` for the block. Of several processes all raise what rank 0 finds wrong with the folder."""
    group = dist.current()
    if group.size == 1:
        with Run(job) as run:
            yield run
        return
    with ExitStack() as stack:
        run = Run(job)

        def enter() -> dict[str, Any]:
            stack.enter_context(run)
            return {"info": run.info, "done": run.done}

        facts = group.from_first(enter)
        if not group.first:
            run = stack.enter_context(Run(job, follows=facts))
        yield run
        if run.done is None:
            group.wait()  # none leaves before all have done their part: a failure of one is one of the run


def by_first(act: Callable[[], T]) -> T | None:
    """What rank 0 does while the others wait for the run's end; None in these."""
    if not dist.current().first:
        return None
    with dist.alone():
        return act()


def own(parts: Sequence[T]) -> Sequence[T]:
    """Those of the parts of a work that are this process's; all of one process."""
    group = dist.current()
    return parts[group.rank :: group.size]


def gathered(path: Path, found: T | None) -> T:
    """A part that some process has written. Raises RunFailed where this one cannot see it."""
    if found is None:
        raise RunFailed(
            f"{path}: another process has written it, and it is not seen here",
            hint="the run folder must lie on a file system that all nodes share",
        )
    return found


def reported(run: Run) -> None:
    """Writes the run's report, in rank 0."""
    if dist.current().first:
        report.attempt(run.folder)


def said(run: Run, name: str) -> str:
    """What a finished run says in the file `name`, in rank 0, which alone answers."""
    return (run.folder / name).read_text("utf-8").rstrip() if dist.current().first else ""
