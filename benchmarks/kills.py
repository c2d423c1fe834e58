"""50 random kills over all trainable methods, 50 resumes: the final weights must be those of uninterrupted runs.

    python benchmarks/kills.py [--kills 50] [--seed 0] [--ranks 1] [--only TASK/METHOD]...

Kills are dealt out over the methods as evenly as they go; SIGKILL comes at random instants (tests/engine/kills.py).
With `--ranks 2` every run is of two processes, and every second kill for one of them alone.
Prints a Markdown table; exit 1 where one tensor differs in one bit.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.engine.kills import CASES, trial


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--only", action="append", help="TASK/METHOD, repeatable")
    args = parser.parse_args()
    torch.set_num_threads(1)  # no worker threads: forking is safe
    chance, methods = random.Random(args.seed), args.only or list(CASES)
    each, more = divmod(args.kills, len(methods))
    print("| method | kills | steps saved when they came | in a save | tensors | differ | s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        for k, method in enumerate(methods):
            found = trial(method, Path(name) / str(k), each + (k < more), chance, args.ranks)
            wrong += bool(found.differs or found.code or not found.tensors)
            steps = ", ".join(map(str, found.steps))
            cells = (method, found.kills, steps, found.saving, found.tensors, len(found.differs), found.seconds)
            print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print(f"\n{args.kills} kills, {len(methods)} methods, {wrong} with weights that differ")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
