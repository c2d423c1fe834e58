"""Runs one training command many times in forked children and kills them; the slow imports are paid once.

    python -m tests.engine.zygote RECIPE OUT KILLS SEED

prints one line per child, `killed DELAY SAVING` or `ended CODE`, and at the end runs the command to completion.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from gentk.engine.run import Job
from gentk.recipe import registry
from gentk.recipe.load import load


def run(recipe: Path, out: Path, *sets: str) -> None:
    job = Job("train", load(recipe, sets), out, quiet=True, command="test")
    registry.task_module("train").run(job)


def child(recipe: Path, out: Path) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run(recipe, out)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def saving(out: Path) -> bool:
    return any((out / "checkpoints").glob(".*.tmp"))


def main() -> None:
    recipe, out, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)  # no worker threads: forking is safe
    run(recipe, out.with_name(f"{out.name}-first"), "train.steps=1")  # the slow imports, before the forks
    chance = random.Random(seed)
    for k in range(kills):
        pid = child(recipe, out)
        delay = chance.uniform(0.0, 0.5)
        end = time.monotonic() + delay
        # every second kill waits for a save to be under way, for two seconds at most
        while time.monotonic() < end or (k % 2 and time.monotonic() < end + 2 and not saving(out)):
            ended, code = os.waitpid(pid, os.WNOHANG)
            if ended:
                print(f"ended early with {os.waitstatus_to_exitcode(code)}", flush=True)
                return
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        print(f"killed {delay:.3f} {saving(out)}", flush=True)
    _, end_status = os.waitpid(child(recipe, out), 0)
    print(f"ended {os.waitstatus_to_exitcode(end_status)}", flush=True)


if __name__ == "__main__":
    main()
