"""The memory plan: against what torch's allocator records, and for text-to-image teachers that are only numbers here.

    python benchmarks/memory.py check           plan and record of two steps, small networks on the CPU (2 minutes)
    python benchmarks/memory.py table [NAME [LAYOUT]]  docs/memory.md's tables, no weights (5 minutes)

The sizes of the table's networks are those of the published configurations; their counts of parameters are checked.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from gentk.engine import memory
from gentk.engine.memory import Plan
from gentk.nets import text
from gentk.nets.text.prompts import Prompts
from gentk.processes import schedules
from gentk.processes.denoiser import Denoiser
from gentk.processes.models import Model
from gentk.recipe import registry, schema
from gentk.recipe.schema import Inputs
from gentk.tasks.distill import _one_step
from gentk.tasks.distill._teachers import Taught

GIB = 2**30
CARDS = (24, 80, 141)
DEVICES = (1, 4, 8)
KINDS: tuple[Literal["ddp", "fsdp"], ...] = ("ddp", "fsdp")
SPARE = 1.5 * GIB  # a CUDA context with cuBLAS and cuDNN, from memory
GAPS = 1.05  # what the allocator loses between blocks, a guess


@dataclass(frozen=True)
class Published:
    """A text-to-image network by its published configuration: method, latents, prompts (L, D), pooled, parameters."""

    family: text.Family
    method: dict[str, Any]
    config: dict[str, Any]
    shape: tuple[int, int, int]
    words: tuple[int, int]
    pooled: int | None
    parameters: int
    process: schema.Process


SD15 = Published(
    "unet",
    {"name": "diff-instruct", "guidance": {"teacher": 2.5}},
    {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    (4, 64, 64),
    (77, 768),
    None,
    859_520_964,
    schema.Discrete(name="discrete", schedule="scaled-linear", beta_start=0.00085, beta_end=0.012),
)
PIXART = Published(
    "pixart",
    {"name": "sim", "guidance": {"teacher": 4.5}},
    {
        "sample_size": 64,
        "num_layers": 28,
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": 8,
        "patch_size": 2,
        "caption_channels": 4096,
        "cross_attention_dim": 1152,
        "attention_bias": True,
        "activation_fn": "gelu-approximate",
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
        "use_additional_conditions": False,
    },
    (4, 64, 64),
    (120, 4096),
    None,
    610_856_096,
    schema.Discrete(name="discrete"),
)
SD3 = Published(
    "sd3",
    {"name": "fgm", "fake_steps": 1, "guidance": {"teacher": 7.0}},
    {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
    },
    (16, 128, 128),
    (333, 4096),
    2048,
    2_028_328_000,
    schema.RectifiedFlow(name="rectified-flow"),
)
PUBLISHED = {"Stable Diffusion 1.5": SD15, "PixArt-alpha 512": PIXART, "Stable Diffusion 3 medium, 1024": SD3}
LAYOUTS: dict[str, dict[str, Any]] = {
    "full copies": {"train": {"precision": "bf16"}},
    "full, checkpointing": {"train": {"precision": "bf16", "checkpointing": True}},
    "LoRA 64": {"lora": {"rank": 64}, "train": {"precision": "bf16"}},
    "LoRA 64, checkpointing": {"lora": {"rank": 64}, "train": {"precision": "bf16", "checkpointing": True}},
    "full, float32": {"train": {"precision": "fp32"}},
}


class Blank:
    """Prompts of the right shapes and no content."""

    count = 1

    def __init__(self, words: tuple[int, int], pooled: int | None, *, masked: bool) -> None:
        self.words, self.pooled, self.masked = words, pooled, masked

    def draw(self, n: int, _gen: torch.Generator, where: torch.device) -> Prompts:
        mask = torch.ones(n, self.words[0], dtype=torch.int64, device=where) if self.masked else None
        pooled = None if self.pooled is None else torch.zeros(n, self.pooled, device=where)
        return Prompts(torch.zeros(n, *self.words, device=where), mask, pooled)

    def take(self, index: torch.Tensor, where: torch.device) -> Prompts:
        return self.draw(len(index), torch.Generator(), where)

    def hide(self, cond: Prompts, _hidden: torch.Tensor) -> Prompts:
        return cond


@contextmanager
def teaching(of: Published) -> Iterator[None]:
    """Distillation around this network, in bfloat16 on the meta device, for the block."""
    blank = Blank(of.words, of.pooled, masked=of.family == "pixart")

    def taught(_recipe: Any, where: torch.device, _load: Any) -> Taught:
        with where:
            net: Any = text.build(of.family, of.config)
        count = sum(p.numel() for p in net.parameters())
        assert count == of.parameters, f"{count:,} parameters, published are {of.parameters:,}"
        net.set_null(blank.draw(1, torch.Generator(), where))
        flow = of.family == "sd3"
        inputs = Inputs(scale="process", label="time", factor=1000.0 if flow else 1.0, offset=0.0 if flow else -1.0)
        denoiser = Denoiser(net, schedules.build(of.process), "flow" if flow else "eps", 1.0, inputs)
        denoiser = denoiser.to(torch.bfloat16).eval().requires_grad_(False)
        header = {"kind": "denoiser", "data": {"name": "text", "shape": of.shape, "classes": 0}}
        return Taught(Model("published", denoiser, header), blank, (), 8)

    before = _one_step.taught
    _one_step.taught = taught
    try:
        yield
    finally:
        _one_step.taught = before


def made(method: dict[str, Any], where: torch.device, batch: int, **own: Any) -> tuple[Any, Any]:
    """A method and its recipe, for `batch` samples at a time."""
    optim = {name: {"name": "adam", "lr": 1e-6, "betas": (0.0, 0.999)} for name in ("generator", "fake")}
    head = {"task": "distill", "about": "memory", "size": "laptop", "teacher": own.pop("teacher", "published")}
    train = {"steps": 2, "batch": batch, **own.pop("train", {})}
    recipe: Any = registry.recipe_schema("distill", method["name"])(
        **head, method=method, optim=optim, train=train, **own
    )
    return registry.method_module("distill", method["name"]).build(recipe, where), recipe


def planned(of: Published, batch: int, layout: dict[str, Any]) -> Plan:
    """The plan of a published network on one CUDA device."""
    with teaching(of):
        method, recipe = made(of.method, memory.META, batch, **layout)
        return memory.plan(method, recipe.train, rules="cuda")


def fits(plan: Plan, card: int) -> str:
    """With how many devices of so many GB, and by what, one sample at a time fits."""
    room = (card * 1e9 - SPARE) / GAPS
    found = [
        f"{devices} {kind}" if devices > 1 else str(devices)
        for devices in DEVICES
        for kind in (KINDS if devices > 1 else KINDS[:1])
        if plan.peak(devices, kind) <= room
    ]
    every = len(DEVICES) * len(KINDS) - 1
    return "any" if len(found) == every else ", ".join(found) or "-"


def table(names: list[str], layouts: list[str]) -> None:
    """Markdown: GiB of each device with one sample at a time, what a second one adds, and the cards that hold it."""
    for title, of in PUBLISHED.items():
        if names and not any(name.lower() in title.lower() for name in names):
            continue
        print(f"\n### {title}, `{of.method['name']}`, guided teacher, {of.parameters:,} parameters\n")
        print(f"| layout | always | {' | '.join(map(str, DEVICES))} | second | ", end="")
        print(" | ".join(f"{card} GB" for card in CARDS), "|\n|" + "---|" * (3 + len(DEVICES) + len(CARDS)))
        for name, layout in LAYOUTS.items():
            if layouts and name not in layouts:
                continue
            one, two = planned(of, 1, layout), planned(of, 2, layout)
            kept = {work.name: {k: round(v / GIB, 3) for k, v in work.kept.items()} for work in one.phases}
            print(json.dumps({"layout": name, "kept": kept}), file=sys.stderr)
            row = [name, f"{one.resident / GIB:.1f}", f"{one.peak() / GIB:.1f}"]
            row += ["/".join(f"{one.peak(devices, kind) / GIB:.1f}" for kind in KINDS) for devices in DEVICES[1:]]
            row += [f"{(two.peak() - one.peak()) / GIB:.2f}", *(fits(one, card) for card in CARDS)]
            print("| " + " | ".join(row) + " |", flush=True)


def check() -> None:
    """Plan and record of whole runs of two steps: the digits' recipes, and the tiny pipelines of the tests."""
    from tests.engine.allocator import recorded
    from tests.nets import tiny_pipelines
    from tests.tasks.toys import fit

    cpu, prompts = torch.device("cpu"), {"text": ("a red cube", "two cats")}
    with tempfile.TemporaryDirectory() as place:
        digits = {"teacher": "edm-digits"}
        cases: list[tuple[str, dict[str, Any], int, dict[str, Any]]] = [
            (f"edm-digits, {name}", {"name": name}, 128, digits) for name in ("sim", "fgm", "diff-instruct")
        ]
        for name, of in (("sd15", SD15), ("pixart", PIXART), ("sd3", SD3)):
            folder = str(getattr(tiny_pipelines, name)(Path(place) / name))
            cases.append((f"tiny {name}, {of.method['name']}", of.method, 64, {"teacher": folder, "prompts": prompts}))
        layouts: dict[str, dict[str, Any]] = {
            "full": {},
            "full, checkpointing": {"train": {"checkpointing": True}},
            "LoRA 4": {"lora": {"rank": 4}},
            "full, bf16": {"train": {"precision": "bf16"}},
            "LoRA 4, checkpointing, bf16": {"lora": {"rank": 4}, "train": {"checkpointing": True, "precision": "bf16"}},
        }
        print("| method | layout | plan, MiB | recorded, MiB | plan / recorded |\n|---|---|---|---|---|")
        for k, (title, method, batch, own) in enumerate(cases):
            for j, (name, layout) in enumerate(layouts.items()):
                own_copy = {**own, **layout}
                built, recipe = made(method, memory.META, batch, **own_copy)
                peak = memory.plan(built, recipe.train, rules="cpu").peak()
                run = Path(place) / f"run-{k}-{j}"
                real = recorded(lambda: fit(run, made(method, cpu, batch, **own_copy)[0]))  # noqa: B023
                print(f"| {title} | {name} | {peak / 2**20:.1f} | {real / 2**20:.1f} | {peak / real:.2f} |", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    check() if sys.argv[1:2] == ["check"] else table(sys.argv[2:3], sys.argv[3:])
