"""Several processes of one run, forked from the one that runs the tests: the slow imports are paid once."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.backends.backend_agg  # noqa: F401  # what the members would each import on their way
import torch
import torch._dynamo
import torch.distributed.checkpoint
import torch.distributed.fsdp

from gentk.engine import world
from gentk.engine.run import Job
from gentk.errors import GentkError
from gentk.recipe import registry
from gentk.recipe.load import load


@dataclass
class Member:
    """A process of the team: its exit code (minus the signal's number) and what it said on stderr."""

    code: int
    said: str


def port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Team:
    """`act(rank)` in `size` processes; `sizes` lets one be told another number."""

    def __init__(self, size: int, folder: Path, act: Callable[[int], object], *, sizes: Mapping[int, int] = {}) -> None:
        self.folder, at = folder, port()
        folder.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        self.pids = []
        for rank in range(size):
            pid = os.fork()
            if pid == 0:
                self._child(rank, sizes.get(rank, size), at, act)
            self.pids.append(pid)

    def _child(self, rank: int, size: int, at: int, act: Callable[[int], object]) -> None:
        code = 1
        try:
            for number in (1, 2):
                file = os.open(self.folder / f"{number}-{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
                os.dup2(file, number)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            torch.set_num_threads(1)
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(at)}
            act(rank)
            code = 0
        except GentkError as e:
            code = e.code
            if not e.told:
                print(f"error: {e}\nhint: {e.hint}", file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def wait(self, limit: float = 120) -> list[Member]:
        """All of them, when they have ended; those that have not by then are killed."""
        end, codes = time.monotonic() + limit, {}
        while len(codes) < len(self.pids) and time.monotonic() < end:
            for pid in self.pids:
                if pid not in codes:
                    found, status = os.waitpid(pid, os.WNOHANG)
                    if found:
                        codes[pid] = os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        for pid in self.pids:
            if pid not in codes:
                os.kill(pid, signal.SIGKILL)
                codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) * 1000  # hung
        return [Member(codes[p], (self.folder / f"2-{r}").read_text()) for r, p in enumerate(self.pids)]


def command(task: str, recipe: Path, out: Path, sets: Sequence[str] = (), **how: object) -> None:
    """What `gentk TASK --recipe RECIPE` does."""
    job = Job(task, load(recipe, list(sets)), out, quiet=True, command="test", **how)  # type: ignore[arg-type]
    with world.together(job):
        registry.task_module(task).run(job)


def together(
    size: int, task: str, recipe: Path, out: Path, sets: Sequence[str] = (), limit: float = 120
) -> list[Member]:
    """The command in `size` processes, one after the other's end."""
    if size == 1:
        command(task, recipe, out, sets)
        return [Member(0, "")]
    return Team(size, out.with_name(f"{out.name}-said"), lambda _: command(task, recipe, out, sets)).wait(limit)
