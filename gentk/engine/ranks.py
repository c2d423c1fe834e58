"""A run folder in use by several processes: rank 0 opens it, writes and keeps its lock; the others are told of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from gentk.engine import dist, report
from gentk.engine.run import Job, Run


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


def reported(run: Run) -> None:
    """Writes the run's report, in rank 0."""
    if dist.current().first:
        report.attempt(run.folder)
