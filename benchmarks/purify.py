"""How fast purification and attacks on it are, on one thread: against a plain loop, copies in one batch or one by one.

    python benchmarks/purify.py [loop] [copies] [gradients]

Times are CPU time of this process, the least of some repetitions: what else runs on the machine counts little.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from gentk.attacks.victim import Tape
from gentk.defences import prior
from gentk.defences.noise import Noise
from gentk.defences.purified import PurifiedClassifier
from gentk.defences.purify_pp import PurifyPP
from gentk.defences.scoreopt import ScoreOpt
from gentk.processes.denoiser import Denoiser
from gentk.processes.grids import karras
from gentk.processes.models import fast_layout, load
from gentk.recipe import load as recipes
from gentk.tasks.purify._bench import build

CPU = torch.device("cpu")


def seconds(work: Callable[[], object], repeat: int = 5) -> float:
    work()
    found = []
    for _ in range(repeat):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return min(found)


@torch.no_grad()
def plain(denoiser: Denoiser, x: Tensor, levels: list[float], noise: Tensor) -> Tensor:
    """EDM's Euler purifier as one would write it in a notebook, on the same levels."""
    z = 2 * x - 1 + levels[0] * noise
    for t, u in pairwise(levels):
        d = denoiser(z, torch.tensor(t, dtype=torch.float64), None)
        z = d if u == 0 else z + (u - t) * (z - d) / t
    return ((z + 1) / 2).clamp(0, 1)


def against_a_plain_loop() -> None:
    model = load("edm-digits", kinds=("denoiser",), where=CPU)
    denoiser = model.net
    assert isinstance(denoiser, Denoiser)
    fast_layout(denoiser)
    bench = build(recipes.load("purify/purify-pp/digits", ["scoring.images=256"]).recipe, CPU)
    print("| NFE | rows | plain Euler, images/s | purify-pp, images/s | ratio |\n|---|---|---|---|---|")
    for nfe in (1, 8, 32):
        levels = karras(nfe, 0.02, 0.5, 7.0).tolist()
        victim = PurifiedClassifier(bench.bare.net, 10, PurifyPP(prior.of(denoiser), 0.5, nfe, t_min=0.02))
        for rows in (32, 256):
            x, tape = bench.x[:rows], Tape.of(bench.ids[:rows], 0)
            noise = Noise(tape, "0/").normal("0.start", x)
            same = plain(denoiser, x, levels, noise)
            assert float((victim.purify(x, tape) - same).abs().max()) < 1e-4

            def theirs(x: Tensor = x, levels: list[float] = levels) -> Tensor:
                return plain(denoiser, x, levels, torch.randn(x.shape))

            def ours(x: Tensor = x, victim: PurifiedClassifier = victim, tape: Tape = tape) -> Tensor:
                return victim.purify(x, tape)

            # in turns, so that the machine's moods fall on both; more of them where one takes milliseconds
            pairs = [(seconds(theirs, 1), seconds(ours, 1)) for _ in range(max(7, 2000 // (rows * nfe)))]
            other, own = (min(pair[i] for pair in pairs) for i in (0, 1))
            print(f"| {nfe} | {rows} | {rows / other:.0f} | {rows / own:.0f} | {other / own:.3f} |")


def copies_in_one_batch() -> None:
    bench = build(recipes.load("purify/purify-pp/digits", ["scoring.images=256"]).recipe, CPU)
    k = 20
    print(f"\n| images | {k} draws one by one, ms | in one batch, ms | ratio |\n|---|---|---|---|")
    for n in (1, 4, 16, 64):
        x, ids = bench.x[:n], bench.ids[:n]

        def gradient(rows: Tensor, tape: Tape) -> Tensor:
            at = rows.clone().requires_grad_()
            return torch.autograd.grad(bench.victim.logits(at, tape).logsumexp(1).sum(), at)[0]

        def looped(x: Tensor = x, ids: Tensor = ids) -> Tensor:
            return torch.stack([gradient(x, bench.victim.tape(ids, 0, d)) for d in range(k)]).mean(0)

        def batched(x: Tensor = x, ids: Tensor = ids, n: int = n) -> Tensor:
            tape = Tape.cat([bench.victim.tape(ids, 0, d) for d in range(k)])
            return gradient(x.repeat(k, 1, 1, 1), tape).reshape(k, n, *x.shape[1:]).mean(0)

        assert float((looped() - batched()).abs().max()) < 1e-3 * float(batched().abs().max() + 1)
        one, all_ = seconds(looped, 1), seconds(batched, 1)
        print(f"| {n} | {1000 * one:.0f} | {1000 * all_:.0f} | {one / all_:.2f} |")


def gradients() -> None:
    """The cost of a purification and of its exact gradient, in calls of the denoiser."""
    bench = build(recipes.load("purify/purify-pp/digits", ["scoring.images=256"]).recipe, CPU)
    x, tape, denoise = bench.x[:128], Tape.of(bench.ids[:128], 0), bench.victim.purifier.denoise  # type: ignore[attr-defined]
    with torch.no_grad():
        call = seconds(lambda: denoise(2 * x - 1, 0.3))
    print("\n| defence | NFE | ms per image | exact gradient, ms | in calls |\n|---|---|---|---|---|")
    own = {
        "purify-pp, SDE": bench.victim.purifier,
        "ScoreOpt-O": ScoreOpt(denoise, t0=0.5, iters=5, lr=0.1),
        "ScoreOpt-N": ScoreOpt(denoise, t0=0.5, iters=5, lr=0.1, resample_t=False, resample_noise=False, final=True),
    }
    for name, purifier in own.items():
        victim = PurifiedClassifier(bench.bare.net, 10, purifier)

        def gradient(victim: PurifiedClassifier = victim) -> None:
            at = x.clone().requires_grad_()
            torch.autograd.grad(victim.logits(at, tape).sum(), at)

        with torch.no_grad():
            forward = seconds(lambda v=victim: v.logits(x, tape), 2)
        back = seconds(gradient, 2)
        print(f"| {name} | {purifier.nfe} | {1000 * forward / 128:.2f} | {1000 * back / 128:.2f} | {back / call:.1f} |")


PARTS = {"loop": against_a_plain_loop, "copies": copies_in_one_batch, "gradients": gradients}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for part in sys.argv[1:] or PARTS:
        PARTS[part]()
