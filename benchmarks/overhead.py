"""Where a training step's time goes, what the loop adds to it, and how long the command line takes to answer.

    python benchmarks/overhead.py [--steps 100] [--cifar-steps 0] [--cifar-batch 4] [--only NAME]... [--startup]

Every row is a real run by the engine (`session.execute`) of a shipped recipe without its measuring, with timers around
what is called: the networks' forward passes, all backward passes, the optimisers, clipping and averaging, the losses.
What is left of the step is the loop. The CIFAR-10 rows take EDM's network (55.7 million parameters) with random weights
(speed does not depend on them) and a small batch: the loop costs the same for every batch. Times are the process's own
(processor seconds on one thread): other work on the machine disturbs them least. Prints JSON; medians over the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from gentk import nets
from gentk.engine import ema, session
from gentk.engine.method import Phase, Result
from gentk.engine.run import Job
from gentk.nets import weights
from gentk.processes.denoiser import Denoiser
from gentk.recipe import load, registry, schema, store

RECIPES = {
    "SIM, digits": ("distill/sim/edm-digits", ()),
    "FGM, digits": ("distill/fgm/edm-digits", ()),
    "Diff-Instruct++, digits": ("align/dipp/sim-digits", ()),
    "SIM, CIFAR-10 net": ("distill/sim/edm-cifar10", ("train.accumulate=1",)),
    "FGM, CIFAR-10 net": ("distill/fgm/edm-cifar10", ("train.accumulate=1", "method.fake_steps=1")),
}


class Clock:
    """Seconds per part of the step that is under way, and those of the steps that are over.

    A part inside another counts for itself only: the networks are taken out of the losses that call them.
    """

    def __init__(self) -> None:
        self.parts: dict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []
        self._open: list[float] = []  # seconds of parts within each part that is open
        self._began = 0.0

    def around(self, name: str, function: Any) -> Any:
        """`function`, its calls counted as the part `name`."""

        def timed(*given: Any, **more: Any) -> Any:
            begun = time.process_time()
            self._open.append(0.0)
            try:
                return function(*given, **more)
            finally:
                whole = time.process_time() - begun
                self.parts[name] += whole - self._open.pop()
                if self._open:
                    self._open[-1] += whole

        return timed

    def step(self) -> None:
        now = time.process_time()
        if self._began:
            self.steps.append({**self.parts, "step": now - self._began})
        self.parts.clear()
        self._began = time.process_time()


class Timed:
    """A method whose networks and losses are timed, and which shows and keeps nothing."""

    def __init__(self, method: Any, clock: Clock) -> None:
        self._method, self._clock = method, clock
        # had at once: `__getattr__` is the instrument's time
        self.nets, self.ema, self.optim, self.data = method.nets, method.ema, method.optim, method.data
        found = [*method.nets.values(), *(v for v in vars(method).values() if isinstance(v, nn.Module))]
        for net in {id(n): n for each in found for n in _networks(each)}.values():
            net.forward = clock.around("networks", net.forward)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def phases(self, step: int) -> Iterator[Phase]:
        self._clock.step()
        for phase in self._method.phases(step):
            yield replace(phase, loss=self._clock.around("losses", phase.loss))

    def preview(self, averaged: Any) -> Result:
        return Result()

    def finish(self, averaged: Any) -> Result:
        return Result()


def _networks(module: nn.Module) -> list[nn.Module]:
    """The networks inside of denoisers, or the module itself: preconditioning is no network."""
    return [m.net for m in module.modules() if isinstance(m, Denoiser)] or [module]


@contextmanager
def timers(clock: Clock) -> Iterator[None]:
    parts = (
        (torch.Tensor, "backward", "backward"),
        (torch.autograd, "grad", "backward"),
        (nn.utils, "clip_grad_norm_", "clipping"),
        (nn.utils, "get_total_norm", "clipping"),
        (ema, "update", "averaging"),
        (torch.optim.Adam, "step", "optimiser"),
    )
    with ExitStack() as stack:
        for owner, name, part in parts:
            stack.enter_context(mock.patch.object(owner, name, clock.around(part, getattr(owner, name))))
        yield


def profile(recipe: str, sets: list[str], steps: int, folder: Path) -> dict[str, Any]:
    """Milliseconds of the parts of a step: medians over `steps`, after as many warm-up steps as a tenth of them."""
    clock, warm = Clock(), max(1, steps // 10)
    sets = ["measure=null", *sets, f"train.steps={steps + warm + 1}", "train.sample_every=0", "train.nan=skip"]
    loaded = load.load(recipe, [*sets, "train.checkpoint_every=1000000"], overrides={})
    task, method = loaded.recipe.task, loaded.recipe.method.name
    build = registry.method_module(task, method).build
    job = Job(task, loaded, folder, device="cpu", quiet=True)
    with timers(clock):
        session.execute(job, lambda r, where: Timed(build(r, where), clock))
    kept = clock.steps[warm:]
    names = ("networks", "backward", "losses", "optimiser", "clipping", "averaging", "step")
    ms = {name: 1000 * statistics.median(each.get(name, 0.0) for each in kept) for name in names}
    ms["loop"] = 1000 * statistics.median(2 * each["step"] - sum(each.values()) for each in kept)
    upkeep = ms["optimiser"] + ms["clipping"] + ms["averaging"]
    return {
        "recipe": recipe,
        "batch": loaded.recipe.train.batch,
        "steps": len(kept),
        "ms": ms,
        "outside_networks": 1 - (ms["networks"] + ms["backward"]) / ms["step"],
        "outside_networks_and_weights": 1 - (ms["networks"] + ms["backward"] + upkeep) / ms["step"],
    }


def stand_in(folder: Path) -> Path:
    """A file as `gentk models import edm-cifar10` makes it, with random weights."""
    section = schema.SongUNet(name="songunet", augment=9)
    torch.manual_seed(0)
    net = nets.build(section, shape=(3, 32, 32), classes=0)
    print(f"{sum(p.numel() for p in net.parameters()):,} parameters", file=sys.stderr)
    header = {
        "kind": "denoiser",
        "net": section.model_dump(mode="json"),
        "process": schema.VE(name="ve").model_dump(mode="json"),
        "predicts": "edm",
        "inputs": schema.Inputs().model_dump(mode="json"),
        "sigma_data": 0.5,
        "data": {"name": "cifar10", "shape": (3, 32, 32), "classes": 0},
    }
    weights.save(folder / "edm-cifar10.safetensors", net, header)
    return folder / "edm-cifar10.safetensors"


def startup(folder: Path) -> dict[str, dict[str, float]]:
    """Wall and processor seconds of whole commands, the best of five."""
    commands = {
        "gentk --help": ("--help",),
        "gentk recipes list": ("recipes", "list"),
        "gentk runs list": ("runs", "list"),
        "gentk distill sim --dry-run": ("distill", "sim", "--dry-run"),
    }
    found = {}
    for name, words in commands.items():
        taken = []
        for _ in range(5):
            before, begun = os.times(), time.perf_counter()
            subprocess.run([sys.executable, "-m", "gentk", *words], check=True, capture_output=True, cwd=folder)
            wall, after = time.perf_counter() - begun, os.times()
            used = after.children_user + after.children_system - before.children_user - before.children_system
            taken.append((wall, used))
        found[name] = {"wall_s": min(w for w, _ in taken), "cpu_s": min(c for _, c in taken)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--cifar-steps", type=int, default=0, help="0: leave the CIFAR-10 network out")
    parser.add_argument("--cifar-batch", type=int, default=4)
    parser.add_argument("--only", action="append", choices=list(RECIPES), help="a row, repeatable")
    parser.add_argument("--startup", action="store_true", help="time whole commands, too")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    rows: dict[str, Any] = {}
    absent = {recipe for recipe, _ in RECIPES.values()} - {entry.name for entry in store.recipes()}
    if absent:  # a row left out in silence is a figure that nobody misses
        parser.error(f"no such recipe: {', '.join(sorted(absent))}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for row, (recipe, sets) in RECIPES.items():
            cifar = "CIFAR" in row
            if (args.only and row not in args.only) or (cifar and not args.cifar_steps):
                continue
            sets = list(sets)
            if cifar:
                sets += [f"teacher={stand_in(folder)}", f"train.batch={args.cifar_batch}"]
            rows[row] = profile(recipe, sets, args.cifar_steps if cifar else args.steps, folder / row)
        found: dict[str, Any] = {"threads": torch.get_num_threads(), "rows": rows}
        if args.startup:
            found["startup"] = startup(folder)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
