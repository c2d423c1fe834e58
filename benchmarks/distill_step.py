"""One training step of SIM and of FGM, ours beside a step written straight from the papers' algorithm boxes.

    python benchmarks/distill_step.py [--steps 30] [--batch 128]

All run on the same networks, batch and random numbers in one process, in turns. The straightforward step keeps every
weight differentiable and every graph, as the boxes read: the teacher's and the fake score's weights get gradients that
nobody uses; its tensors have PyTorch's usual layout. Ours runs as the recipe says and with `method.reuse`, where one
call of the generator serves the whole step. Printed are the ratios of time (the process's own, on one thread unless
OMP_NUM_THREADS says otherwise: other work on the machine disturbs it least) and of bytes kept for the backward pass,
and how far the gradients differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gentk.engine import loop, optim, rng
from gentk.engine.method import Batch
from gentk.processes import times
from gentk.processes.process import expand, ratio
from gentk.recipe import load, store
from gentk.recipe.registry import method_module

CPU = torch.device("cpu")


def built(recipe: str, batch: int, *words: str) -> tuple[Any, Any]:
    loaded = load.load(store.find(recipe), ["measure=null", f"train.batch={batch}", *words], overrides={})
    torch.manual_seed(0)
    return method_module("distill", loaded.recipe.method.name).build(loaded.recipe, CPU), loaded.recipe


class Straight:
    """The boxes: all networks differentiable, all graphs kept until they are dropped."""

    def __init__(self, recipe: str, batch: int) -> None:
        self.method, self.recipe = built(recipe, batch)
        self.n, self.flow = batch, self.recipe.method.name == "fgm"
        self.nets = {**self.method.nets, "teacher": self.method.teacher}
        for net in self.nets.values():
            net.requires_grad_(True).eval().to(memory_format=torch.contiguous_format)
        self.optimisers = {
            k: optim.build(self.method.optim[k], self.nets[k].parameters()) for k in ("fake", "generator")
        }

    def drawn(self, law: Any, gen: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """x0, labels, time, noise and noised sample, in the order in which ours draws them."""
        m, process = self.method, self.method.process
        z = torch.randn((self.n, *m.model.shape), generator=gen)
        cond = torch.randint(m.model.classes, (self.n,), generator=gen)
        x0 = self.nets["generator"](float(process.sigma(m.t_init)) * z, m.t_init, cond)
        t = times.draw(law, process, self.n, gen, CPU)
        eps = torch.randn(z.shape, generator=gen)
        return x0, cond, t, eps, expand(process.alpha(t), z) * x0 + expand(process.sigma(t), z) * eps

    def fake_loss(self, gen: torch.Generator) -> Tensor:
        x0, cond, t, eps, x_t = self.drawn(self.recipe.method.noise_fake, gen)
        x0, x_t = x0.detach(), x_t.detach()
        d = self.nets["fake"](x_t, t, cond)
        s = ratio(self.method.process, t).to(x0)
        if self.flow:
            v = (x_t - d) / expand(s / (1 + s), x0)
            return (v - (eps - x0)).square().flatten(1).mean(1).mean()
        return ((1 / s**2 + 1 / self.method.teacher.sigma_data**2) * (d - x0).square().flatten(1).mean(1)).mean()

    def generator_loss(self, gen: torch.Generator) -> Tensor:
        x0, cond, t, _, x_t = self.drawn(self.recipe.method.noise_generator, gen)
        q, psi = self.nets["teacher"](x_t, t, cond), self.nets["fake"](x_t, t, cond)
        if self.flow:  # 2 (u - v) . (v - (x1 - x0))
            time = expand((s := ratio(self.method.process, t)) / (1 + s), x0).clamp_min(1e-3)
            u, v = (x_t - q) / time, (x_t - psi) / time
            return (2 * (u - v) * (v - (x_t - x0) / time)).flatten(1).sum(1).mean()
        delta = q - psi
        norm = (delta.square().flatten(1).sum(1) + (0.00054 * x0[0].numel() ** 0.5) ** 2).sqrt()
        return (delta / expand(norm, x0) * (psi - x0)).flatten(1).sum(1).mean()

    def step(self, k: int) -> None:
        losses = [
            ("fake", "fake" if i == 0 else f"fake-{i + 1}", self.fake_loss)
            for i in range(self.recipe.method.fake_steps)
        ]
        for name, phase, loss in [*losses, ("generator", "generator", self.generator_loss)]:
            for each in self.optimisers.values():
                each.zero_grad()
            loss(rng.generator(0, k, phase, 0)).backward()
            self.optimisers[name].step()


class Ours:
    """The engine's own update."""

    def __init__(self, recipe: str, batch: int, *words: str) -> None:
        self.method, self.recipe = built(recipe, batch, *words)
        self.step = loop.bare(self.method, train=self.recipe.train, seed=0, where=CPU)


def gradients(ours: Ours, straight: Straight) -> float:
    """Largest difference of the generator's gradients from one state and one draw, over their largest entry."""
    ours.method.nets["generator"].requires_grad_(True).eval()
    ours.method.nets["fake"].requires_grad_(False).eval()
    with torch.no_grad():  # at the start the fake score is the teacher, and every gradient is 0
        for a, b in zip(ours.method.nets["fake"].parameters(), straight.nets["fake"].parameters(), strict=True):
            b.add_(0.05 * torch.randn(b.shape, generator=torch.Generator().manual_seed(b.numel())))
            a.copy_(b)
    loss, _ = ours.method._generator_loss(Batch(straight.n), rng.generator(0, 0, "generator", 0))
    mine = torch.autograd.grad(loss, list(ours.method.nets["generator"].parameters()))
    other = straight.generator_loss(rng.generator(0, 0, "generator", 0))
    theirs = torch.autograd.grad(other, list(straight.nets["generator"].parameters()))
    largest = max(float(g.abs().max()) for g in theirs)
    return max(float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=True)) / largest


def kept(step: Callable[[int], None]) -> int:
    """The most bytes that one backward pass of the step keeps, weights apart; each piece of memory counts once."""
    most, seen = 0, {}

    def pack(x: Tensor) -> Tensor:
        nonlocal most
        if not isinstance(x, nn.Parameter):
            seen[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        most = max(most, sum(seen.values()))
        return x

    backward = torch.Tensor.backward

    def counted(self: Tensor, *args: Any, **kwargs: Any) -> None:
        backward(self, *args, **kwargs)
        seen.clear()

    torch.Tensor.backward = counted  # type: ignore[method-assign]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            step(0)
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    args = parser.parse_args()
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    rows = []
    for recipe in ("distill/sim/edm-digits", "distill/fgm/flow-digits"):
        straight = Straight(recipe, args.batch)
        ours = {"ours": Ours(recipe, args.batch), "ours, reuse": Ours(recipe, args.batch, "method.reuse=true")}
        apart = {name: gradients(each, straight) for name, each in ours.items()}
        every: dict[str, Any] = {"straight": straight, **ours}
        bytes_kept = {name: kept(each.step) for name, each in every.items()}
        taken: dict[str, list[float]] = {name: [] for name in every}
        for k in range(1, args.steps + 1):
            for name, each in every.items():
                begun = time.process_time()
                each.step(k)
                taken[name].append(time.process_time() - begun)
        ms = {name: 1000 * statistics.median(column) for name, column in taken.items()}
        for name in ours:
            row = {"recipe": recipe, "step": name, "ms": ms[name], "straight_ms": ms["straight"]}
            row |= {"time": ms[name] / ms["straight"], "memory": bytes_kept[name] / bytes_kept["straight"]}
            rows.append(row | {"gradients": apart[name]})
    print(json.dumps({"threads": threads, "batch": args.batch, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
