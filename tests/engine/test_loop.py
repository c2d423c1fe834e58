"""The loop: which networks move, in which order, with which numbers; and that a resumed run is the same run."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch

from gentk.engine import checkpoint, ema, loop, rng
from gentk.engine.stop import StopRequest
from gentk.errors import RunFailed, Stopped
from gentk.recipe.schema import Ema, Train
from tests.engine.tiny import Folder, Points, Tiny

CPU = torch.device("cpu")


def fit(folder: Path, method: Tiny | None = None, stop: StopRequest | None = None, **train: object) -> loop.State:
    section = Train(**({"steps": 12, "batch": 8, "checkpoint_every": 4, "log_every": 3} | train))  # type: ignore[arg-type]
    run = Folder(folder)
    try:
        return loop.fit(
            method or Tiny(),
            train=section,
            average=Ema(half_life=64),
            seed=3,
            where=CPU,
            run=run,  # type: ignore[arg-type]
            stop=stop or StopRequest(),
        )
    finally:
        run.log.close()


def weights(state: loop.State) -> dict[str, torch.Tensor]:
    parts = {**{f"net.{k}": v for k, v in state.nets.items()}, **{f"ema.{k}": v for k, v in state.averaged.items()}}
    return {f"{k}.{n}": t.clone() for k, net in parts.items() for n, t in net.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_one_step_equals_the_update_written_out(tmp_path: Path) -> None:
    """Adam on the phase's network alone, on the keyed batch and noise, then the average moves by lerp."""
    method, mine = Tiny(), Tiny()
    before = copy.deepcopy(mine.nets["a"])
    state = fit(tmp_path, method, steps=1, checkpoint_every=1)
    x = Points().x[rng.indices(3, 0, 8, 100)]
    for name in ("a", "b"):
        gen = rng.generator(3, 0, name, 0)
        torch.manual_seed(rng.key(3, 0, name, 0, "global"))
        for other, net in mine.nets.items():
            net.train(other == name)
        if name == "a":
            target = x + 1
            loss = (mine.nets["a"](x + 0.1 * torch.randn(x.shape, generator=gen)) - target).square().mean()
        else:
            loss = (mine.nets["b"](x) - mine.nets["a"](x).detach()).square().mean()
        parameters = list(mine.nets[name].parameters())
        gradients = torch.autograd.grad(loss, parameters)
        for p, g in zip(parameters, gradients, strict=True):  # Adam's first step, eps 1e-8: lr * g / (|g| + eps)
            p.data -= 1e-2 * g / (g.abs() + 1e-8)
    for name in ("a", "b"):
        for p, q in zip(state.nets[name].parameters(), mine.nets[name].parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-7)
    beta = ema.decay(Ema(half_life=64), 8, 8)
    for average, p0, p1 in zip(
        state.averaged["a"].parameters(), before.parameters(), method.nets["a"].parameters(), strict=True
    ):
        torch.testing.assert_close(average, torch.lerp(p0, p1, 1 - beta), rtol=0, atol=1e-7)
    assert method.order == ["0:a", "0:b"]


def test_only_the_networks_of_a_phase_get_gradients(tmp_path: Path) -> None:
    class Watched(Tiny):
        def _b(self, batch, gen):  # type: ignore[no-untyped-def]
            assert all(not p.requires_grad for p in self.nets["a"].parameters())
            assert all(p.grad is None for p in self.nets["a"].parameters()), "a gradient of the phase before is left"
            assert not self.nets["a"].training
            assert self.nets["b"].training
            return super()._b(batch, gen)

    fit(tmp_path, Watched(), steps=3)


def test_accumulation_is_the_mean_over_micro_batches(tmp_path: Path) -> None:
    """With no dropout and no noise, 1 x 8 and 4 x 2 samples give the same step up to rounding."""

    class Plain(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.nets["a"][1].p = 0.0  # type: ignore[index]

        def _a(self, batch, gen):  # type: ignore[no-untyped-def]
            return (self.nets["a"](batch.x) - batch.x - 1).square().mean(), {}

    one = weights(fit(tmp_path / "one", Plain(), steps=5))
    four = weights(fit(tmp_path / "four", Plain(), steps=5, accumulate=4))
    for k in one:
        torch.testing.assert_close(one[k], four[k], rtol=0, atol=1e-5)


@pytest.mark.parametrize("at", [4, 8])
def test_resumed_equals_uninterrupted(tmp_path: Path, at: int) -> None:
    whole = weights(fit(tmp_path / "whole"))
    stop = StopRequest()

    class Halting(Tiny):
        def phases(self, step):  # type: ignore[no-untyped-def]
            if step == at - 1:
                stop.signal = "SIGTERM"
            return super().phases(step)

    with pytest.raises(Stopped):
        fit(tmp_path / "cut", Halting(), stop=stop)
    second = Tiny(seed=99)  # other initial weights: everything must come from the checkpoint
    assert same(weights(fit(tmp_path / "cut", second)), whole)
    assert second.order[0] == f"{at}:a"


def test_a_checkpoint_without_optimiser_state_would_be_noticed(tmp_path: Path) -> None:
    """Negative control of the test above: forgetting Adam's moments changes the result."""
    whole = weights(fit(tmp_path / "whole"))
    fit(tmp_path / "cut", steps=8)
    folder = tmp_path / "cut" / "checkpoints"
    packed = checkpoint.latest(folder, CPU, print)
    assert packed is not None
    fresh = loop.start(Tiny())
    packed["optimisers"] = fresh.pack()["optimisers"]
    checkpoint.save(folder, 9, packed, keep=9)
    assert not same(weights(fit(tmp_path / "cut")), whole)


def test_the_metrics_of_a_resumed_run_have_every_step_once(tmp_path: Path) -> None:
    fit(tmp_path, steps=12, checkpoint_every=4, log_every=3, keep=9)
    for newer in (8, 12):
        (tmp_path / "checkpoints" / f"{newer:08d}" / "meta.json").unlink()
    fit(tmp_path, steps=12, checkpoint_every=4, log_every=3)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "a/loss" in row] == [3, 6, 9, 12]
    assert [row["step"] for row in rows if "eval/weight" in row] == [12]


@pytest.mark.parametrize("most", [3, 1024])
def test_lines_are_means_over_steps_and_micro_batches(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers of any kind; NaN says that there was nothing, and a name that only ever said so is left out."""
    monkeypatch.setattr(loop, "_MOST_ROWS", most)
    seen: list[tuple[float, float]] = []

    class Logs(Tiny):
        def _a(self, batch, gen):  # type: ignore[no-untyped-def]
            loss, figures = super()._a(batch, gen)
            some = torch.tensor(len(seen) / 3, dtype=torch.float64) if len(seen) % 3 else torch.tensor(math.nan)
            seen.append((float(figures["seen"]), float(some)))
            whole = torch.tensor(len(seen))
            return loss, figures | {"some": some, "whole": whole, "none": torch.tensor(math.inf)}

    fit(tmp_path, Logs(), steps=8, accumulate=2, log_every=4)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first, second = (row for row in lines if "a/loss" in row)
    for row, part in ((first, seen[:8]), (second, seen[8:])):
        given = [some for _, some in part if math.isfinite(some)]
        assert row["a/seen"] == pytest.approx(sum(x for x, _ in part) / 8, rel=1e-6)
        assert row["a/some"] == pytest.approx(sum(given) / len(given), rel=1e-6)
        assert "a/none" not in row
        assert row.keys() >= {"b/loss", "a/grad_norm_a", "b/grad_norm_b"}
    assert (first["a/whole"], second["a/whole"]) == (4.5, 12.5)


def test_nan_stops_with_the_phase_named_and_the_state_kept(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"step \d+, phase `a`: the loss is not finite") as failure:
        fit(tmp_path, Tiny(broken=True), steps=40)
    kept = list((tmp_path / "checkpoints" / "failed").glob("[0-9]*/state.pt"))
    assert len(kept) == 1
    assert str(kept[0].parent) in str(failure.value)
    state = torch.load(kept[0], weights_only=True)
    assert all(t.isfinite().all() for net in state["nets"].values() for t in net.values()), "the bad update was applied"
    assert (
        not checkpoint.steps(tmp_path / "checkpoints")
        or max(checkpoint.steps(tmp_path / "checkpoints")) <= state["step"]
    )


def test_nan_is_skipped_when_the_recipe_says_so(tmp_path: Path) -> None:
    state = fit(tmp_path, Tiny(broken=True), steps=40, nan="skip")
    assert state.step == 40
    assert all(t.isfinite().all() for t in weights(state).values())


def test_skipping_gives_up_when_nothing_is_learned(tmp_path: Path) -> None:
    method = Tiny()
    method.data.x[:] = math.inf
    with pytest.raises(RunFailed, match="not finite"):
        fit(tmp_path, method, steps=40, nan="skip")


def test_skipping_gives_up_when_one_phase_of_two_learns_nothing(tmp_path: Path) -> None:
    """The other phase's good updates must not hide it: a dead generator beside a healthy fake score."""
    seen = []

    class Half(Tiny):
        def _a(self, batch, gen):  # type: ignore[no-untyped-def]
            return self.nets["a"](batch.x).sum() * math.nan, {}

        def _b(self, batch, gen):  # type: ignore[no-untyped-def]
            seen.append(all(p.grad is None for p in self.nets["a"].parameters()))
            return super()._b(batch, gen)

    with pytest.raises(RunFailed, match="phase `a`"):
        fit(tmp_path, Half(), steps=100, nan="skip")
    assert len(seen) == 20
    assert all(seen), "a skipped update left its gradients behind"


def test_pictures_at_the_end_only_unless_asked_for(tmp_path: Path) -> None:
    for every, expected in ((0, [6]), (2, [0, 2, 4, 6])):
        fit(tmp_path / str(every), steps=6, sample_every=every)
        rows = map(json.loads, (tmp_path / str(every) / "metrics.jsonl").read_text().splitlines())
        assert [row["step"] for row in rows if "eval/weight" in row] == expected


def test_a_gradient_that_is_not_finite_is_caught_too(tmp_path: Path) -> None:
    class Steep(Tiny):
        def _b(self, batch, gen):  # type: ignore[no-untyped-def]
            return (self.nets["b"].weight * 0).abs().sqrt().sum(), {}  # value 0, gradient 0 * inf

    with pytest.raises(RunFailed, match="phase `b`: the gradient is not finite"):
        fit(tmp_path, Steep(), steps=2)


def test_clipping_bounds_the_gradient(tmp_path: Path) -> None:
    """SGD-like check through Adam's first moment: with betas (0, 0.999) exp_avg is the clipped gradient itself."""
    method = Tiny(clip=0.01, betas=(0.0, 0.999))
    state = fit(tmp_path, method, steps=1)
    moments = [s["exp_avg"] for s in state.optimisers["a"].state.values()]
    norm = math.sqrt(sum(float(m.square().sum()) for m in moments))
    assert norm == pytest.approx(0.01, rel=1e-4)


def test_bf16_runs_under_autocast_with_float32_weights(tmp_path: Path) -> None:
    seen = []

    class Watched(Tiny):
        def _a(self, batch, gen):  # type: ignore[no-untyped-def]
            seen.append(self.nets["a"](batch.x).dtype)
            return super()._a(batch, gen)

    state = fit(tmp_path, Watched(), steps=2, precision="bf16")
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in state.nets["a"].parameters()} == {torch.float32}


def test_dropout_is_keyed_by_step_not_by_history(tmp_path: Path) -> None:
    first = weights(fit(tmp_path / "1"))
    torch.manual_seed(12345)  # what the global generator held before must not matter
    torch.randn(17)
    assert same(weights(fit(tmp_path / "2")), first)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own, on importing its compiler
def test_compiled_gives_the_same_numbers(tmp_path: Path) -> None:
    class Plain(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.nets["a"][1].p = 0.0  # type: ignore[index]  # compiled code draws dropout in another order

    eager = weights(fit(tmp_path / "eager", Plain(), steps=3))
    fast = weights(fit(tmp_path / "fast", Plain(), steps=3, compile=True))
    assert eager.keys() == fast.keys()  # checkpoints of compiled runs stay readable
    for k in eager:
        torch.testing.assert_close(fast[k], eager[k], rtol=0, atol=1e-6)
