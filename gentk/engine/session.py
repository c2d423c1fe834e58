"""From a recipe to a finished run: build the method, train it, keep its models, measure it, write the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gentk.engine import dist, heap, loop, memory, pictures, precision, ranks, room
from gentk.engine.keeping import keep
from gentk.engine.method import Trainable
from gentk.engine.run import Job, Outcome, Run
from gentk.engine.stop import StopRequest, listening
from gentk.errors import RecipeError, RunFailed
from gentk.recipe.explain import dump

Build = Callable[[Any, torch.device], Trainable]


def execute(job: Job, build: Build) -> Outcome:
    """Runs a training job in its folder, from the start or from where it stopped.

    Raises GentkError for what the user can mend; run.json, log and report are written however it ends.
    """
    train = job.recipe.train
    if train.batch % train.accumulate:
        raise RecipeError(
            f"train.accumulate: a batch of {train.batch} cannot be split into {train.accumulate} equal parts"
        )
    micro, size = train.batch // train.accumulate, dist.current().size
    if micro % size:
        raise RecipeError(
            f"train.batch: {micro} images at a time cannot be divided among {size} processes",
            hint=f"a multiple of {size * train.accumulate}, or another number of processes",
        )
    if job.dry_run:
        return _plan(job, build)
    run: Run | None = None
    with listening() as stop:
        stop.anywhere = True  # but for the loop: whatever else is interrupted can be done again
        try:
            with ranks.opened(job) as run:
                if run.done is None:
                    _work(run, build, stop)
        finally:
            stop.anywhere = False  # the end is on its way: a signal now must not lose it
            if run is not None and (run.info or (run.done and not (run.folder / "report.html").exists())):
                ranks.reported(run)
    return run.outcome()


def _work(run: Run, build: Build, stop: StopRequest) -> None:
    job = run.job
    where = precision.device(job.device)
    if where.type == "cpu":
        heap.keep()
    device = torch.cuda.get_device_name(where) if where.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    run.update(device=device)
    try:
        method = build(job.recipe, where)
        room.check(run.folder, room.wanted(method, job.recipe.train.keep))
        stop.anywhere = False
        state = loop.fit(
            method,
            train=job.recipe.train,
            average=job.recipe.ema,
            seed=job.recipe.seed,
            where=where,
            run=run,
            stop=stop,
        )
        stop.anywhere = True  # the last checkpoint stands
        if stop.signal is not None:
            stop.stop()
        result = method.finish(state.averaged)
    except (RuntimeError, MemoryError) as e:  # torch.OutOfMemoryError is a RuntimeError, and so is the CPU's
        if not _is_memory(e):
            raise
        said = f": {str(e).splitlines()[0]}" if str(e) else ""
        raise RunFailed(
            f"out of {'device ' if where.type == 'cuda' else ''}memory{said}",
            hint=f"--set train.accumulate={2 * job.recipe.train.accumulate} takes the batch in smaller pieces; else "
            "lower train.batch, or --set train.precision=bf16",
        ) from e
    for name, picture in result.pictures.items() if dist.current().first else ():
        pictures.save(picture, run.folder / "samples" / f"{name}.png")
    keep(run, run.folder / "export", result.exports, result.metrics)
    run.update(metrics={k: float(v) for k, v in result.metrics.items()})


def _is_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left: of the device, of torch on the CPU, or of Python."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _plan(job: Job, build: Build) -> Outcome:
    """What `--dry-run` says: the resolved recipe, memory, and the updates of a step. Nothing is run or written."""
    train, where = job.recipe.train, precision.device(job.device)
    lines = [dump(job.recipe).rstrip(), ""]
    devices, last = dist.current().size, train.steps - 1  # a warm-up has fewer updates than the steps after it
    try:
        method = build(job.recipe, memory.META)
        told = memory.lines(memory.plan(method, train, rules=where.type, devices=devices), train, devices)
    except (RuntimeError, TypeError):  # a method that looks at numbers, or at its device, while it is built or run
        method, last = build(job.recipe, where), 0  # between updates of a later step real work may be done
        told = memory.without_activations(method)
    lines += [f"# {line}" for line in told]
    lines.append(f"# disk: {room.wanted(method, train.keep)}")
    order = " -> ".join(f"{p.name} ({', '.join(p.nets)})" for p in method.phases(last))
    lines.append(f"# each step: {order}")
    lines.append(
        f"# {train.steps:,} steps of {train.batch}: {train.steps * train.batch:,} images per phase, in {job.out}"
    )
    return Outcome("planned", answer="\n".join(lines))
