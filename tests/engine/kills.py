"""Every trainable method at its smallest: a whole run, and one that is killed and resumed; are the weights equal?

    python -m tests.engine.kills FOLDER [--kills 3] [--seed 0] [--ranks 1] [--only TASK/METHOD]...

All runs are forked children of one process, so that the slow imports are paid once; SIGKILL comes at a random instant
between start and end. Of several ranks every second kill is for one of them alone: the others must end by themselves.
Prints one JSON object per method: the steps that were saved at each kill, and whether all tensors of `export/` are
those of the whole run, bit for bit.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gentk.engine import world
from gentk.engine.run import Job
from gentk.recipe import registry
from gentk.recipe.load import load
from tests.engine.team import Team

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
    """What became of one method: the steps saved at each kill, the exit code at the end, what differs.

    `alone`: how many kills were for one rank only.
    """

    method: str
    kills: int
    alone: int
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


def started(method: str, out: Path, ranks: int) -> Team:
    """The run in `ranks` forked children."""

    def act(_: int) -> None:
        mine = job(method, out)
        with world.together(mine):
            registry.task_module(mine.task).run(mine)

    return Team(ranks, out.with_name(f"{out.name}-said"), act)


def ended(pid: int) -> bool:
    """Whether a child is over; its exit code stays to be asked for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def code(team: Team) -> int:
    """Waits for all; the first exit code that is not 0, and what was said goes to stderr."""
    wrong = [member for member in team.wait(300) if member.code]
    for member in wrong:
        print(f"exit {member.code}: {member.said}", file=sys.stderr, flush=True)
    return wrong[0].code if wrong else 0


def used(pid: int) -> float:
    """Seconds of processor time that a process has had, to the nanosecond: other work on the machine moves no kill."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3), which Python has not
    except OSError:
        return float("inf")


def saved(out: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(p.parent.name) for p in out.glob("checkpoints/[0-9]*/meta.json")), default=0)


def trial(method: str, folder: Path, kills: int, chance: random.Random, ranks: int = 1) -> Trial:
    """One whole run, then one that is killed `kills` times, each time after a random part of its steps.

    The whole run says how long starting takes and how long a step: a small run spends most of its time on its report,
    where a kill proves little. A run that ends before its kill comes is compared, too, and another one is begun: every
    kill that counts has come.
    """
    begun = time.monotonic()
    os.environ.setdefault("GENTK_DIST_TIMEOUT", "30")  # what is left over by a kill before they have met waits so long
    whole, cut = folder / "whole", folder / "cut"
    warm = job(method, folder / "warm", "train.steps=5")  # pays for the imports
    registry.task_module(warm.task).run(warm)
    team, at = started(method, whole, ranks), {}
    while not ended(team.pids[0]):
        at.setdefault(saved(whole), used(team.pids[0]))
        time.sleep(0.002)
    last = code(team)
    early = sorted(k for k in at if k < _STEPS)  # the last one comes after the report; on busy cores some go unseen
    first, end = early[min(1, len(early) - 1)], early[-1]
    each = (at[end] - at[first]) / (end - first) if first < end else max(at.values()) / _STEPS
    start, reach = max(0.0, at[first] - first * each), 1.0
    steps: list[int] = []
    saving, alone, tensors, differs = 0, 0, 0, []
    while len(steps) < kills and not last:
        left = _STEPS - saved(cut)
        team, limit = started(method, cut, ranks), chance.uniform(0.8 * start, start + reach * (left + 2) * each)
        while used(team.pids[0]) < limit and not ended(team.pids[0]):
            time.sleep(0.002)
        if ended(team.pids[0]):
            last = last or code(team)
            differs += _differences(whole, cut)[0]
            shutil.rmtree(cut)
            reach *= 0.8  # it was over sooner than was thought, or we looked too late
            continue
        one = ranks > 1 and len(steps) % 2 == 0
        victims = [chance.choice(team.pids)] if one else team.pids
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        for pid, member in zip(team.pids, team.wait(60), strict=True):
            if pid not in victims and member.code not in (0, 1):  # 0: it had done its part
                last = last or member.code
        steps.append(saved(cut))
        alone += one
        saving += any((cut / "checkpoints").glob(".*.tmp"))
    last = last or code(started(method, cut, ranks))
    different, tensors = _differences(whole, cut)
    seconds = round(time.monotonic() - begun, 1)
    return Trial(method, kills, alone, steps, saving, last, differs + different, tensors, seconds)


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
    parser.add_argument("--ranks", type=int, default=1, help="processes per run")
    parser.add_argument("--only", action="append", help="TASK/METHOD, repeatable")
    args = parser.parse_args()
    torch.set_num_threads(1)  # no worker threads: forking is safe
    chance = random.Random(args.seed)
    rows: list[dict[str, Any]] = []
    for method in args.only or CASES:
        row = asdict(trial(method, args.folder / method.replace("/", "-"), args.kills, chance, args.ranks))
        rows.append(row)
        print(json.dumps(row), flush=True)
    wrong = [row["method"] for row in rows if row["differs"] or row["code"] or not row["tensors"]]
    kills = sum(row["kills"] for row in rows)
    print(json.dumps({"methods": len(rows), "kills": kills, "wrong": wrong}), flush=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
