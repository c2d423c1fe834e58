"""Every trainable method small enough to be trained twice, and the losses of that: what 2 processes must share with 1.

    python -m tests.engine.parity FOLDER [TASK METHOD]...      # all of them, 50 steps; a table on stdout

Points in the plane and networks of a few hundred weights, but where a method wants images. Adam's eps is 1e-4: where a
gradient is zero but for rounding, its usual eps of 1e-8 would turn the rounding's sign into a step of full length, and
the comparison would be of that.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from gentk.engine import dist, loop
from gentk.engine.method import Result
from gentk.engine.stop import StopRequest
from gentk.nets import weights
from gentk.recipe import registry
from gentk.recipe.stamp import read_header
from tests.engine.team import Team
from tests.engine.tiny import Folder
from tests.tasks.align_toys import S_INIT
from tests.tasks.toys import CPU, VE, write_teacher

POINTS = {"name": "points:ring8", "points": 400}
MLP = {"name": "mlp", "width": 16, "blocks": 1}
ADAM = {"name": "adam", "lr": 1e-3, "eps": 1e-4}
TRAIN = {"steps": 50, "batch": 16, "log_every": 1, "checkpoint_every": 50}
TARGET = {
    "task": "train",
    "target": {"name": "mcmc-banana"},
    "net": {"name": "plain", "width": 8, "depth": 2},
    "score_net": {"name": "plain", "width": 8, "depth": 2},
    "measure": None,
}
LEARNED = {"task": "restore", "operator": {"name": "noise"}, "sigma": 0.5, "net": MLP, "data": POINTS}
COUPLINGS = {"name": "couplings", "steps": 2, "width": 8, "depth": 1}


def data(task: str, method: Mapping[str, Any], **own: Any) -> dict[str, Any]:
    return {"task": task, "data": POINTS, "net": MLP, "method": method, "optim": ADAM} | own


def distilled(**method: Any) -> dict[str, Any]:
    return {"task": "distill", "teacher": "TEACHER", "method": method, "optim": {"generator": ADAM, "fake": ADAM}}


def aligned(**method: Any) -> dict[str, Any]:
    rewards = [{"name": "function", "of": "tests.tasks.align_toys:quadratic"}]
    section = {"rewards": rewards, "watch": {"samples": 64}, "warmup": 5, "alpha_rew": "auto"} | method
    return {"task": "align", "generator": "GENERATOR", "teacher": "TEACHER", "method": section} | {
        "optim": {"generator": ADAM, "fake": ADAM}
    }


ENERGY = {"name": "energy-mlp", "width": 8, "depth": 2}
CASES: dict[tuple[str, str], dict[str, Any]] = {
    ("train", "denoiser"): data("train", {"name": "denoiser", "label_dropout": 0.2}),
    ("train", "flow"): data("train", {"name": "flow", "coupling": "ot"}, train={"accumulate": 2}),
    ("train", "vsdm"): data("train", {"name": "vsdm", "stages": 2, "stage": 20, "paths": 50, "path_steps": 8}),
    ("train", "classifier"): data(
        "train",
        {"name": "classifier", "shift": 1, "noise": 0.1},
        data={"name": "digits"},
        net={"name": "small-cnn", "width": 8, "features": 8},
    ),
    ("train", "implicit-kl"): TARGET | {"method": {"name": "implicit-kl", "scale": 2.0}},
    ("train", "implicit-fisher"): TARGET
    | {"method": {"name": "implicit-fisher", "form": "denoising", "kl_first": 0.4, "scale": 2.0, "lag": 0.3}},
    ("train-ebm", "dcd"): data("train-ebm", {"name": "dcd"}, net=ENERGY),
    ("train-ebm", "cd"): data("train-ebm", {"name": "cd", "steps": 4}, net=ENERGY),
    ("train-ebm", "pcd"): data("train-ebm", {"name": "pcd", "steps": 4, "buffer": 64, "penalty": 0.1}, net=ENERGY),
    ("distill", "sim"): distilled(name="sim"),
    # its weight 1 / mean|x0 - D| has no digits left at the smallest of its usual levels, 0.002
    ("distill", "sid"): distilled(name="sid", fake_steps=2, noise_generator={"name": "karras", "sigma_min": 0.1}),
    ("distill", "diff-instruct"): distilled(name="diff-instruct"),
    ("distill", "fgm"): distilled(name="fgm"),
    ("align", "dipp"): aligned(name="dipp"),
    ("align", "di-star"): aligned(name="di-star"),
    ("restore", "naive"): LEARNED | {"method": {"name": "naive"}},
    ("restore", "ambient"): LEARNED
    | {"method": {"name": "ambient"}, "operator": {"name": "inpaint"}, "sigma": 0.05}
    | {"data": {"name": "digits"}, "net": {"name": "unet", "width": 8, "multipliers": [1]}},
    ("restore", "em"): LEARNED | {"method": {"name": "em", "pool": 64, "every": 20, "levels": 3}},
    ("restore", "flowdiff"): LEARNED
    | {"method": {"name": "flowdiff", "warmup": 15, "prior_steps": 15}, "flow": COUPLINGS},
}


def trainable() -> set[tuple[str, str]]:
    """Task and method of all that the registry knows and that has a loop."""
    found = [(task, method) for task in registry.tasks() for method in registry.methods(task)]
    return {pair for pair in found if "train" in registry.recipe_schema(*pair).model_fields}


def prepare(folder: Path) -> None:
    """The teacher and the one-step generator that some need."""
    folder.mkdir(parents=True, exist_ok=True)
    teacher = write_teacher(folder / "teacher.safetensors", process=VE, classes=0)
    header = read_header(teacher) | {"kind": "generator", "sigma_init": S_INIT, "teacher": str(teacher)}
    from gentk.processes.models import load

    model = load(str(teacher), kinds=("denoiser",), where=CPU)
    weights.save(folder / "generator.safetensors", model.net.net, header)  # type: ignore[arg-type]


def recipe(pair: tuple[str, str], folder: Path, **train: Any) -> Any:
    """The case's recipe, validated."""
    case = {"about": "parity", "size": "smoke"} | CASES[pair]
    case["train"] = TRAIN | case.get("train", {}) | train
    text = json.dumps(case).replace("TEACHER", str(folder / "teacher.safetensors"))
    text = text.replace("GENERATOR", str(folder / "generator.safetensors"))

    def tuples(x: Any) -> Any:
        if isinstance(x, list):
            return tuple(tuples(v) for v in x)
        return {k: tuples(v) for k, v in x.items()} if isinstance(x, dict) else x

    return registry.recipe_schema(*pair)(**tuples(yaml.safe_load(text)))


def train(pair: tuple[str, str], folder: Path, out: Path, **own: Any) -> None:
    """The loop alone, in this process of as many as the environment says: what is shown on the way costs more."""
    of = recipe(pair, folder, **own)
    with dist.joined({}, "cpu") as group:
        method = registry.method_module(*pair).build(of, CPU)
        method.preview = lambda averaged: Result()
        run = Folder(out if group.first else out.with_name(f"{out.name}-{group.rank}"))
        loop.fit(method, train=of.train, average=of.ema, seed=0, where=CPU, run=_At(run, out), stop=StopRequest())  # type: ignore[arg-type]
        run.log.close()


class _At:
    """A run whose checkpoints all processes look for in the same folder."""

    def __init__(self, run: Folder, folder: Path) -> None:
        self.job, self.log, self.info, self.folder = run.job, run.log, run.info, folder
        self.warn, self.update = run.warn, run.update


def _member(pair: tuple[str, str], folder: Path, out: Path, own: dict[str, Any], _rank: int) -> None:
    train(pair, folder, out, **own)


def losses(path: Path) -> dict[str, float]:
    """Every loss by phase and step."""
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return {f"{row['step']} {k}": v for row in rows for k, v in row.items() if k.endswith("/loss")}


def compare(pair: tuple[str, str], folder: Path, **own: Any) -> tuple[float, int]:
    """The largest difference of a loss, in units of max(1, |loss|), between 2 processes and 1; how many losses."""
    name = "-".join(pair)
    for size in (1, 2):
        torch.set_num_threads(1)
        out = folder / f"{name}-{size}"
        members = Team(size, folder / f"{out.name}-said", partial(_member, pair, folder, out, own)).wait(300)
        assert [m.code for m in members] == [0] * size, (pair, [m.said[-2000:] for m in members])
    one, two = (losses(folder / f"{name}-{size}") for size in (1, 2))
    assert one.keys() == two.keys(), (pair, one.keys() ^ two.keys())
    return max(abs(one[k] - two[k]) / max(1.0, abs(one[k])) for k in one), len(one)


def main() -> None:
    folder = Path(sys.argv[1])
    pairs = list(zip(sys.argv[2::2], sys.argv[3::2], strict=True)) or sorted(CASES)
    for pair in pairs:
        for parallel in ("ddp", "fsdp"):
            try:
                prepare(folder / parallel)
                worst, count = compare(pair, folder / parallel, parallel=parallel)
                print(f"{pair[0]:10} {pair[1]:16} {parallel}  {worst:.2e} over {count} losses", flush=True)
            except AssertionError as e:
                print(f"{pair[0]:10} {pair[1]:16} {parallel}  {str(e)[-1500:]}", flush=True)


if __name__ == "__main__":
    main()
