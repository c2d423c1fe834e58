"""Every trainable method at its smallest: a whole run, and one that is killed and resumed; are the weights equal?

    python -m tests.engine.kills FOLDER [--kills 3] [--seed 0] [--only TASK/METHOD]...

The runs that are killed are forked children of the process that made the whole run, so that the slow imports are paid
once; SIGKILL comes at a random instant between start and end. Prints one JSON object per method: the steps that were
saved at each kill, and whether all tensors of `export/` are those of the whole run, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gentk.engine.run import Job
from gentk.recipe import registry
from gentk.recipe.load import load

_ONE_STEP = ("measure=null", "train.batch=4")
_ALIGN = (*_ONE_STEP, "method.warmup=3")
_POINTS = ("measure.n=200", "measure.preview=0")
_RESTORE = ("measure=null", "train.batch=4")
_SAMPLER = ("measure=null",)
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "train/denoiser": ("train/denoiser/points-ring8", ("measure=null", "net.width=32")),
    "train/flow": ("train/flow/points-ring8", ("measure=null", "net.width=32")),
    "train/classifier": ("train/classifier/digits", ("train.batch=16",)),
    "train/vsdm": ("train/vsdm/points-spiral-8y", ("measure=null",)),
    "train/implicit-kl": ("train/implicit-kl/mog2", _SAMPLER),
    "train/implicit-fisher": ("train/implicit-fisher/mcmc-banana", _SAMPLER),
    "train-ebm/dcd": ("train-ebm/dcd/points-ring8", ("measure=null",)),
    "train-ebm/cd": ("train-ebm/cd/points-ring8", ("measure=null",)),
    "train-ebm/pcd": ("train-ebm/pcd/points-ring8", ("measure=null",)),
    "distill/sim": ("distill/sim/edm-digits", _ONE_STEP),
    "distill/sid": ("distill/sid/edm-digits", _ONE_STEP),
    "distill/diff-instruct": ("distill/diff-instruct/edm-digits", _ONE_STEP),
    "distill/fgm": ("distill/fgm/flow-digits", _ONE_STEP),
    "align/dipp": ("align/dipp/sim-digits", _ALIGN),
    "align/di-star": ("align/di-star/sim-digits", _ALIGN),
    "restore/flowdiff": ("restore/flowdiff/digits", (*_RESTORE, "method.warmup=3", "method.prior_steps=0")),
    "restore/naive": ("restore/naive/digits", _RESTORE),
    "restore/em": ("restore/em/digits", _RESTORE),
    "restore/ambient": ("restore/ambient/digits", _RESTORE),
}
"""Method -> its recipe and what makes it small."""

_STEPS = 18
_COMMON = (
    f"train.steps={_STEPS}",
    "train.checkpoint_every=4",
    "train.log_every=3",
    "train.sample_every=0",
    "train.keep=1",
)


@dataclass(frozen=True)
class Trial:
    """What became of one method: the steps saved at each kill, the exit code at the end, what differs."""

    method: str
    kills: int
    steps: list[int]
    saving: int
    code: int
    differs: list[str]
    tensors: int
    seconds: float


def job(method: str, out: Path, *more: str) -> Job:
    recipe, sets = CASES[method]
    task = method.partition("/")[0]
    return Job(task, load(recipe, [*sets, *_COMMON, *more]), out, device="cpu", quiet=True, command="kills")


def child(method: str, out: Path) -> int:
    """Starts the run in a forked child and returns its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            mine = job(method, out)
            registry.task_module(mine.task).run(mine)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def used(pid: int) -> float:
    """Seconds of processor time that a process has had: other work on the machine moves no kill."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("inf")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def saved(out: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(p.parent.name) for p in out.glob("checkpoints/[0-9]*/meta.json")), default=0)


def trial(method: str, folder: Path, kills: int, chance: random.Random) -> Trial:
    """One whole run, then one that is killed `kills` times, each time after a random part of what is left of it.

    A run that ends before its kill comes is compared, too, and another one is begun: every kill that counts has come.
    """
    begun = time.monotonic()
    whole, cut = folder / "whole", folder / "cut"
    for out, sets in ((folder / "warm", ("train.steps=5",)), (whole, ())):  # the first pays for the imports
        mine, start = job(method, out, *sets), time.process_time()
        registry.task_module(mine.task).run(mine)
        length = time.process_time() - start
    steps: list[int] = []
    saving, code, tensors, differs = 0, 0, 0, []
    while len(steps) < kills:
        left = 1 - 0.9 * saved(cut) / _STEPS
        pid, limit = child(method, cut), chance.uniform(0.05, 1.0) * left * length
        while used(pid) < limit:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = code or os.waitstatus_to_exitcode(status)
                differs += _differences(whole, cut)[0]
                shutil.rmtree(cut)
                length *= 0.9  # it was over sooner than was thought
                break
            time.sleep(0.002)
        else:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            steps.append(saved(cut))
            saving += any((cut / "checkpoints").glob(".*.tmp"))
    _, status = os.waitpid(child(method, cut), 0)
    last, tensors = _differences(whole, cut)
    seconds = round(time.monotonic() - begun, 1)
    return Trial(
        method, kills, steps, saving, code or os.waitstatus_to_exitcode(status), differs + last, tensors, seconds
    )


def _differences(whole: Path, cut: Path) -> tuple[list[str], int]:
    """The tensors of `export/` that are not the same bit for bit, and how many there are."""
    names = {path.name for run in (whole, cut) for path in (run / "export").glob("*.safetensors")}
    differs, tensors = [], 0
    for name in sorted(names):
        try:
            one, other = (load_file(run / "export" / name) for run in (whole, cut))
        except OSError:
            differs.append(name)
            continue
        tensors += len(one)
        differs += [f"{name}: {k}" for k in one.keys() | other.keys() if not _same(one.get(k), other.get(k))]
    return differs, tensors


def _same(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    return a is not None and b is not None and a.dtype == b.dtype and torch.equal(a, b)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=3, help="per method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="TASK/METHOD, repeatable")
    args = parser.parse_args()
    torch.set_num_threads(1)  # no worker threads: forking is safe
    chance = random.Random(args.seed)
    rows: list[dict[str, Any]] = []
    for method in args.only or CASES:
        row = asdict(trial(method, args.folder / method.replace("/", "-"), args.kills, chance))
        rows.append(row)
        print(json.dumps(row), flush=True)
    wrong = [row["method"] for row in rows if row["differs"] or row["code"] or not row["tensors"]]
    kills = sum(row["kills"] for row in rows)
    print(json.dumps({"methods": len(rows), "kills": kills, "wrong": wrong}), flush=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
