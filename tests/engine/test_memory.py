"""The memory plan: exact where it can be counted by hand, and against what torch's allocator records of real runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gentk.engine import memory
from gentk.engine.allocations import Casts, Live, backward
from gentk.engine.memory import Part, Plan, Work
from gentk.engine.method import Batch, Metrics, Phase
from gentk.nets.recompute import recompute
from gentk.nets.unet import UNet
from gentk.recipe import registry
from gentk.recipe.schema import Optimiser, Train
from tests.engine.allocator import recorded
from tests.tasks.toys import CPU, VE, fit, recipe, write_teacher

META = torch.device("meta")


# --- counting -------------------------------------------------------------------------------------------------------


def test_bytes_are_counted_from_birth_to_death() -> None:
    with Live() as live:
        a = torch.empty(1000, device=META)
        assert live.now == 4000
        b = a[10:].reshape(-1).view(99, 10)  # views are nothing new
        assert live.now == 4000
        c = (b + 1).half()  # the sum is gone when its rounded copy is there
        assert live.now == 4000 + 2 * 990
        assert live.peak == 4000 + 4 * 990 + 2 * 990
        del a
        assert live.now == 4000 + 2 * 990, "b still holds it"
        del b, c
        assert live.now == 0


def test_what_backward_needs_is_held_and_given_back() -> None:
    """tanh keeps its answer, a linear layer its input: 3 x 5 x 8 numbers each; then gradients of weights and biases."""
    first, second = nn.Linear(7, 8, device=META), nn.Linear(8, 2, device=META)
    x = torch.empty(15, 7, device=META)
    with Live() as live:
        out = second(first(x).tanh())
        assert live.now == 4 * (15 * 8 + 15 * 2), "x was there before, and what tanh was of is not needed"
        assert len(live.inputs) == 5, "x and four parameters"
        loss = out.sum()
        del out
        backward(loss)
        del loss
        gradients = 4 * (7 * 8 + 8 + 8 * 2 + 2)
        assert live.now == gradients
    with Live() as live, torch.no_grad():
        second(first(x).tanh())
        assert (live.now, live.peak) == (0, 4 * 15 * 8 * 2)


def test_attention_keeps_no_matrix_of_pairs_where_it_is_fused() -> None:
    """q, k, v lie before; kept are the answer and a float32 a row. Laid out otherwise, torch makes the matrix."""
    q, k, v = (torch.empty(2, 4, 100, 8, device=META, requires_grad=True) for _ in range(3))
    with Live() as live, Casts("fp32", "cpu"):
        out = F.scaled_dot_product_attention(q, k, v)
        assert out.shape == q.shape
        assert live.now == 4 * (2 * 4 * 100 * 8 + 2 * 4 * 100)
    slanted = [x.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_() for x in (q, k, v)]
    with Live() as live, Casts("fp32", "cpu"):
        F.scaled_dot_product_attention(*slanted)
        assert live.peak > 4 * 2 * 4 * 100 * 100


@pytest.mark.parametrize("rules", ["cpu", "cuda"])
def test_autocast_is_followed(rules: str) -> None:
    """On the CPU what the real one makes and keeps; on CUDA norms are wide. Weights that learn are cast once."""
    net = nn.Sequential(nn.Linear(32, 32), nn.GroupNorm(4, 32), nn.SiLU(), nn.Linear(32, 32))

    def dtypes(out: Tensor) -> list[torch.dtype]:
        found: list[torch.dtype] = []
        handles = [m.register_forward_hook(lambda _m, _a, o: found.append(o.dtype)) for m in net]
        net(out)
        for handle in handles:
            handle.remove()
        return found

    with torch.autocast("cpu", torch.bfloat16):
        real = dtypes(torch.zeros(5, 32))
    net.to(META)
    with Casts("bf16", rules):
        shadow = dtypes(torch.zeros(5, 32, device=META))
    low, wide = torch.bfloat16, torch.float32
    assert real == [low, low, low, low]
    assert shadow == (real if rules == "cpu" else [low, wide, wide, low])
    with Casts("fp32", rules):
        assert dtypes(torch.zeros(5, 32, device=META)) == [wide] * 4
    layer, x = nn.Linear(64, 64, bias=False, device=META), torch.zeros(1, 64, device=META)
    with Live() as live, Casts("bf16", rules):
        once = [layer(x)], live.now
        twice = [layer(x)], live.now
        assert twice[1] - once[1] < 2 * 64 * 64 <= once[1]


# --- real runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("teacher") / "t.safetensors"
    net = {"name": "unet", "width": 32, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
    return str(write_teacher(place, process=VE, classes=3, label_dropout=0.1, **net))


SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": {"rank": 4}},
    "checkpointing": {"train": {"checkpointing": True}},
    "bf16": {"train": {"precision": "bf16"}},
    "bf16, lora, checkpointing": {"lora": {"rank": 4}, "train": {"checkpointing": True, "precision": "bf16"}},
    "accumulate": {"train": {"accumulate": 2}},
    "guided": {"method": {"guidance": {"teacher": 3.0}}},
    "diff-instruct": {"method": {"name": "diff-instruct"}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_plan_is_within_15_percent_of_the_allocators_record(tmp_path: Path, images: str, name: str) -> None:
    """The whole of it: networks, moments and averages are made inside the record too, then two steps."""
    own = SETTINGS[name]
    train = {"steps": 2, "batch": 64, **own.get("train", {})}
    told = recipe(
        {"name": "sim"} | own.get("method", {}), teacher=images, lora=own.get("lora"), train=train, measure=None
    )
    make = registry.method_module("distill", told.method.name).build
    peak = recorded(lambda: fit(tmp_path, make(told, CPU)))
    plan = memory.plan(make(told, META), told.train, rules="cpu")
    assert plan.peak() == pytest.approx(peak, rel=0.15)
    if name in ("full", "lora"):  # without what gradients through the two frozen denoisers keep, it would be far off
        work = plan.phases[-1]
        assert plan.peak() - work.kept["teacher"] - work.kept["fake"] < 0.7 * peak


def test_where_the_bytes_are(images: str) -> None:
    """Full copies: 3 + 3 + average for the generator, by the numbers of the parameters; with adapters, one base."""

    def of(**own: Any) -> Plan:
        told = recipe({"name": "sim"} | own.pop("method", {}), teacher=images, **own)
        return memory.plan(
            registry.method_module("distill", told.method.name).build(told, META), told.train, rules="cpu"
        )

    full, lora = of(), of(lora={"rank": 4})
    base = full.nets["fake"].weights
    assert base == 4 * full.nets["fake"].parameters
    assert [(p.moments, p.average) for p in full.nets.values()] == [(2 * base, 0), (2 * base, base)]
    # of the teacher and its times; EDM's sigma is no tensor on the device
    assert full.frozen == pytest.approx(base, rel=0.01)
    assert lora.frozen == full.frozen
    assert lora.resident < 0.5 * full.resident
    fake, generator = full.phases
    assert (fake.name, generator.name) == ("fake", "generator")
    assert fake.gradients == generator.gradients == base
    assert set(fake.kept) == {"fake", "generator"}, "the teacher is not called"
    assert fake.kept["generator"] < 0.05 * fake.kept["fake"], "no graph through the generator"
    assert all(generator.kept[name] > 10 * base for name in ("generator", "teacher", "fake"))
    blind = of(method={"name": "diff-instruct"}).phases[-1]
    assert blind.kept["teacher"] < 0.05 * generator.kept["teacher"]
    twice = of(method={"guidance": {"teacher": 3.0}}).phases[-1]
    assert twice.kept["teacher"] == pytest.approx(2 * generator.kept["teacher"], rel=0.01)
    saving = of(train={"steps": 4, "batch": 64, "checkpointing": True}).phases[-1]
    assert saving.peak < 0.6 * generator.peak


def test_several_devices() -> None:
    """Sums by hand: 10 of weights, 20 of moments, 10 of the average; 5 frozen; gradients 10 of 30 or of 12."""
    parts = {"net": Part(10, 10, 20, 10)}
    plan = Plan(parts, 5, (Work("a", ("net",), {}, 10, 30), Work("b", ("net",), {}, 10, 12)))
    assert plan.resident == 45
    assert [plan.peak(n) for n in (1, 2, 8)] == [75, 75, 75]
    assert plan.peak(4, "fsdp") == 5 + 10 + 40 // 4 + 30, "a quarter of what is kept, the weights whole for a while"
    assert plan.peak(1, "fsdp") == plan.peak(1)
    small = Plan(parts, 5, (Work("b", ("net",), {}, 10, 12),))
    assert (small.peak(1), small.peak(2)) == (57, 65), "gradients lie there twice while they are summed"


class Numbers:
    """A method that looks at a number while it runs."""

    def __init__(self) -> None:
        self.nets: dict[str, nn.Module] = {"net": nn.Linear(3, 3)}
        self.ema, self.optim, self.data = ("net",), {"net": Optimiser(lr=1.0)}, None

    def phases(self, step: int) -> Iterator[Phase]:
        yield Phase("only", ("net",), self._loss)

    def _loss(self, batch: Batch, gen: torch.Generator) -> tuple[Tensor, Metrics]:
        out: Tensor = self.nets["net"](torch.ones(batch.n, 3, device=next(self.nets["net"].parameters()).device))
        return (out.sum() if float(out.sum()) > 0 else -out.sum()), {}


def test_a_method_that_looks_at_numbers_is_told_apart() -> None:
    method: Any = Numbers()
    method.nets["net"].to(META)
    with pytest.raises(RuntimeError):
        memory.plan(method, Train(steps=1, batch=2), rules="cpu")
    told = memory.without_activations(method)
    assert "192 B" not in told[-1]
    assert "not known beforehand" in told[-1]
    assert told[0].startswith("net: 12 parameters, averaged")


def test_recomputation_is_followed() -> None:
    """What is made again in the backward pass is in the peak, what it replaces is not kept."""

    def peak(*, saving: bool) -> tuple[int, int]:
        with META:
            net = UNet(
                size=8, channels=3, classes=0, width=32, multipliers=(1, 2), blocks=2, attention=(), dropout=0.1
            ).train()
        if saving:
            recompute(net)
        with Live() as live, Casts("fp32", "cpu"):
            out = net(torch.empty(16, 3, 8, 8, device=META), torch.empty(16, device=META), None)
            kept = live.now
            backward(out.sum())
            return kept, live.peak

    (kept, most), (less, least) = peak(saving=False), peak(saving=True)
    assert less < 0.4 * kept
    assert less < least < 0.7 * most


def test_dry_run_tells_it(images: str) -> None:
    from gentk.engine.run import Job
    from gentk.engine.session import _plan

    told = recipe({"name": "sim"}, teacher=images, lora={"rank": 2})
    job = Job("distill", SimpleNamespace(recipe=told, source="x.yaml"), Path("out"), device="cpu")  # type: ignore[arg-type]
    answer = _plan(job, registry.method_module("distill", "sim").build).answer
    assert "# phase generator: activations kept by generator" in answer
    assert "on each device for 64 samples at a time" in answer
    assert "# each step: fake (fake) -> generator (generator)" in answer
