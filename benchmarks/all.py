"""All short benchmarks by one command: JSON, and one page with tables, machine and date.

    python benchmarks/all.py [--out runs/benchmarks] [--only GROUP]... [--steps 5] [--fresh]

Groups: `steps` (a training step of every method), `sampling` (images per second of a many-step and a one-step model),
`startup`, `scaling` (with batch, parameters, 1 and 2 processes; memory), `distill` (against the papers' boxes written
straight), `purify` (against plain loops), `solvers` (against diffusers), `features` (against torch-fidelity and
clean-fid, where they are installed). Each is a process of its own on one thread, and what it has found is kept in the
JSON file, so that a stopped run goes on. Some eight minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

Table = dict[str, Any]
"""`title`, `head` (names), `rows` (texts and numbers) and `note`."""


def script(name: str, *words: str) -> str:
    """Standard output of a benchmark beside this one. Raises RuntimeError with what it said."""
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py"), *words], capture_output=True, text=True, cwd=HERE.parent, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
    return done.stdout


def markdown(text: str, title: str, note: str) -> list[Table]:
    """The Markdown tables in a benchmark's output."""
    tables: list[Table] = []
    lines = text.splitlines()
    for k, line in enumerate(lines):
        if re.fullmatch(r"\|[-:| ]+\|", line) and k:
            head = cells(lines[k - 1])
            rows = []
            for row in lines[k + 1 :]:
                if not row.startswith("|"):
                    break
                rows.append(cells(row))
            tables.append({"title": title, "head": head, "rows": rows, "note": note})
    return tables


def cells(line: str) -> list[str]:
    return [cell.strip().strip("*") for cell in line.strip().strip("|").split("|")]


def steps(count: int) -> list[Table]:
    """Milliseconds of a step of every trainable method, by its recipe for a laptop, and where they go."""
    import overhead
    import torch

    from tests.engine.kills import CASES

    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for method, (recipe, sets) in CASES.items():
            own = [s for s in sets if not s.startswith(("train.batch", "measure", "net."))]
            found = overhead.profile(recipe, own, count, Path(folder) / method.replace("/", "-"))
            ms, batch = found["ms"], found["batch"]
            rows.append([method, recipe.rpartition("/")[2], batch, ms["step"], 1000 * batch / ms["step"],
                         100 * found["outside_networks"], ms["losses"], ms["loop"]])  # fmt: skip
    head = ["method", "recipe", "batch", "ms per step", "images/s", "% outside networks", "losses, ms", "loop, ms"]
    note = "Processor time on one thread, median. Networks: forward and backward; outside: losses, optimiser, the loop."
    return [{"title": "A training step of every method", "head": head, "rows": rows, "note": note}]


def sampling(_: int) -> list[Table]:
    """Images per second of the models that ship with the package."""
    import torch

    from gentk.processes.denoiser import Denoiser
    from gentk.processes.models import load
    from gentk.recipe import store

    torch.set_num_threads(1)
    from gentk.engine.generative import Sampler

    rows = []
    for name in store.models():
        try:
            model = load(name, kinds=("denoiser", "generator"), where=torch.device("cpu"))
        except Exception as error:  # another kind of model: not for this table
            print(f"{name}: {error}", file=sys.stderr)
            continue
        assert isinstance(model.net, Denoiser)
        sigma = model.header.get("sigma_init")
        sampler = Sampler(model.net, model.shape, tuple(range(model.classes)), torch.device("cpu"), sigma_init=sigma)
        n = 500 if sigma is not None else 100
        sampler(10, 0)
        begun = time.process_time()
        sampler(n, 0)
        seconds = time.process_time() - begun
        rows.append([name, "x".join(map(str, model.shape)), sampler.nfe, n / seconds, 1000 * seconds / n])
    head = ["model", "shape", "NFE", "images/s", "ms per image"]
    return [{"title": "Sampling", "head": head, "rows": rows, "note": "Processor time on one thread."}]


def startup(_: int) -> list[Table]:
    import overhead

    with tempfile.TemporaryDirectory() as folder:
        found = overhead.startup(Path(folder))
    rows = [[name, each["wall_s"], each["cpu_s"]] for name, each in found.items()]
    note = "The best of five whole commands."
    return [{"title": "Start-up", "head": ["command", "seconds", "processor seconds"], "rows": rows, "note": note}]


def scaling(count: int) -> list[Table]:
    """Wall time of a step and memory of real runs: by the batch, by the network's width, by the number of processes."""
    from safetensors.torch import load_file

    denoiser, sim = "train/denoiser/digits", "distill/sim/edm-digits"
    cases: list[tuple[str, str, int, int, str]] = []
    cases += [("batch", denoiser, batch, 1, "net.width=16") for batch in (32, 128, 512)]
    cases += [("parameters", denoiser, 128, 1, f"net.width={width}") for width in (16, 32, 64)]
    cases += [("processes", recipe, 512, ranks, "train.accumulate=1") for recipe in (denoiser, sim) for ranks in (1, 2)]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for k, (along, recipe, batch, ranks, own) in enumerate(cases):
            task, method, _ = recipe.split("/")
            out = Path(name) / str(k)
            small = ("measure=null", "train.sample_every=0", "train.log_every=2", f"train.batch={batch}", own)
            words = ["-m", "gentk", task, method, "--recipe", recipe, "--out", str(out), "--quiet", "--device", "cpu"]
            for each in (*small, f"train.steps={2 * max(3, count)}"):
                words += ["--set", each]
            if ranks > 1:
                words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *words]
            done = subprocess.run(
                [sys.executable, *words], capture_output=True, text=True, cwd=HERE.parent, check=False
            )
            if done.returncode:
                raise RuntimeError(done.stderr.strip().splitlines()[-1])
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            rates = [line["steps_per_s"] for line in lines if "steps_per_s" in line][1:]  # the first one warms up
            ms = 1000 / statistics.median(rates)
            weights = sum(x.numel() for f in (out / "export").glob("*.safetensors") for x in load_file(f).values())
            memory = max(line["memory_mb"] for line in lines if "memory_mb" in line)
            rows.append([along, recipe, weights, batch, ranks, ms, 1000 * batch / ms, memory])
    head = ["along", "recipe", "weights", "batch", "processes", "ms per step", "images/s", "MB of a process"]
    note = "Wall time, median, one thread in each process: meant for a machine with a core for each of them."
    return [{"title": "Scaling", "head": head, "rows": rows, "note": note}]


def distill(count: int) -> list[Table]:
    found = json.loads(script("distill_step", "--steps", str(max(3, count)), "--batch", "64"))
    head = ["recipe", "step", "ms", "straight, ms", "time, ratio", "memory, ratio", "gradients differ by"]
    rows = [
        [r["recipe"], r["step"], r["ms"], r["straight_ms"], r["time"], r["memory"], r["gradients"]]
        for r in found["rows"]
    ]
    note = f"Beside the papers' boxes written straight, in turns, batch {found['batch']}: below 1 is ours the better."
    return [{"title": "A distillation step against its box", "head": head, "rows": rows, "note": note}]


def purify(_: int) -> list[Table]:
    return markdown(script("purify", "loop", "copies"), "Purification", "Against a plain loop over the images.")


def solvers(_: int) -> list[Table]:
    note = "gentk's solvers over diffusers' schedulers: the time around the network."
    return markdown(script("solvers", "overhead", "--repeats", "3"), "Solvers", note)


def features(_: int) -> list[Table]:
    note = "Inception features of the same images, in turns: above 1 is ours the faster."
    return markdown(script("features", "--images", "16", "--rounds", "1", "--batch", "16"), "Features for FID", note)


GROUPS: dict[str, Callable[[int], list[Table]]] = {
    "startup": startup,
    "steps": steps,
    "sampling": sampling,
    "scaling": scaling,
    "distill": distill,
    "purify": purify,
    "solvers": solvers,
    "features": features,
}


def machine() -> dict[str, str]:
    from gentk.recipe.stamp import versions

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = re.search(r"model name\s*:\s*(.+)", info.read_text())
        model = named[1] if named else model
    facts = {"processor": model, "cores": str(os.cpu_count()), "system": platform.platform()}
    return facts | versions()


def shown(value: Any) -> str:
    from gentk.engine.log import tidy

    return tidy(value) if isinstance(value, int | float) else escape(str(value))


def page(found: dict[str, Any], path: Path) -> None:
    from gentk.engine import report

    facts = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in found["machine"].items())
    parts = [f'<header><div class="over">gentk</div><h1>benchmarks</h1><p class="soft">{found["date"]}</p></header>']
    for name, group in found["groups"].items():
        if "fault" in group:
            parts.append(f'<h2>{escape(name)}</h2><p class="soft">not measured: {escape(group["fault"])}</p>')
        parts += [html(table) for table in group.get("tables", ())]
    parts += [f'<h2>Machine</h2><dl class="facts">{facts}</dl>', report.footer()]
    report.publish(path, "gentk benchmarks", parts)


def html(table: Table) -> str:
    def number(k: int) -> bool:
        return all(isinstance(row[k], int | float) or re.match(r"^[-+\d.]", str(row[k])) for row in table["rows"])

    columns = range(len(table["head"]))
    kinds = ['class="number"' if number(k) else "" for k in columns]
    head = "".join(f"<th {kinds[k]}>{escape(table['head'][k])}</th>" for k in columns)
    rows = ["".join(f"<td {kinds[k]}>{shown(row[k])}</td>" for k in columns) for row in table["rows"]]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<h2>{escape(table["title"])}</h2><p class="soft">{escape(table["note"])}</p>'
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"))
    parser.add_argument("--only", action="append", choices=list(GROUPS), help="a group, repeatable")
    parser.add_argument("--steps", type=int, default=5, help="training steps that are timed per method")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--one", choices=list(GROUPS), help=argparse.SUPPRESS)
    args = parser.parse_args(given)
    if args.one:
        print(json.dumps(GROUPS[args.one](args.steps)))
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    kept = args.out / "benchmarks.json"
    found: dict[str, Any] = {"groups": {}}
    if kept.exists() and not args.fresh:
        found = json.loads(kept.read_text())
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only or GROUPS:
        if "tables" in found["groups"].get(name, {}):
            continue
        begun = time.monotonic()
        words = [sys.executable, __file__, "--one", name, "--steps", str(args.steps)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            found["groups"][name] = {"fault": (done.stderr.strip().splitlines() or ["?"])[-1]}
        else:
            tables = json.loads(done.stdout.splitlines()[-1])
            found["groups"][name] = {"tables": tables, "seconds": round(time.monotonic() - begun, 1)}
        found["date"], found["machine"] = f"{datetime.now():%Y-%m-%d}", machine()
        kept.write_text(json.dumps(found, indent=1))
        page(found, args.out / "benchmarks.html")
        print(f"{name}: {found['groups'][name].get('fault', 'done')}", file=sys.stderr, flush=True)
    print(args.out / "benchmarks.html")


if __name__ == "__main__":
    main()
