"""`train flow` and `train denoiser` in one: the same loop, another loss, pairs of data and noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gentk.engine import loop, rng
from gentk.engine.method import Batch
from gentk.engine.stop import StopRequest
from gentk.losses.coupling import paired
from gentk.processes import times
from gentk.processes.denoiser import Denoiser
from gentk.recipe import registry
from gentk.recipe.schema import Ema
from gentk.tasks.train._denoising import Denoising
from tests.engine.tiny import Folder
from tests.tasks.toys import CPU, randomise

N = 24
FLOW: dict[str, Any] = {"name": "flow"}


def build(method: dict[str, Any], data: str = "digits", **own: Any) -> Denoising:
    net = {"name": "unet", "width": 8} if data == "digits" else {"name": "mlp", "width": 64, "blocks": 2}
    section = registry.recipe_schema("train", method["name"])(
        task="train",
        about="a test",
        size="smoke",
        data={"name": data, "points": 4000},
        net=net,
        method=method,
        optim={"lr": 2e-3, "betas": (0.9, 0.99), "decay": "cosine"},
        **{"train": {"steps": 4, "batch": N}} | own,
    )
    built = registry.method_module("train", method["name"]).build(section, CPU)
    assert isinstance(built, Denoising)
    return built


def batch(method: Denoising) -> Batch:
    x, y = method.data.batch(torch.arange(N))
    return Batch(N, x, y)


class Watched(nn.Module):
    """Keeps what the network is asked; its answer is a velocity that depends on all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        assert cond is not None
        self.calls.append((x, c_noise, cond))
        return x.sin() + 0.1 * cond.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("coupling", ["independent", "ot", "ot-per-class"])
def test_the_loss_is_flow_matching_on_the_pairs(coupling: str) -> None:
    """By hand: mean |net - (x1 - x0)|^2, x1 assigned to x0, each label with its own data, one in ten hidden.

    The control leaves the labels behind: x0 moved to the noise, as one may write it, with y where it was.
    """
    method = build(FLOW | {"coupling": coupling, "label_dropout": 0.3})
    given = batch(method)
    assert given.x is not None
    assert given.y is not None
    net = Watched()
    method.nets["denoiser"].net = net
    loss, _ = method._loss(given, rng.generator(3))

    gen = rng.generator(3)
    flow = method.nets["denoiser"].process
    t = times.draw(method.config.noise, flow, N, gen, CPU)
    noise = torch.randn(given.x.shape, generator=gen)
    hidden = torch.rand(N, generator=gen) < 0.3
    y = torch.where(hidden, 10, given.y)
    x1 = paired(coupling, given.x, noise, given.y)  # type: ignore[arg-type]
    assert torch.equal(x1, noise) == (coupling == "independent")

    def by_hand(x0: Tensor, x1: Tensor, y: Tensor) -> float:
        time = t.float().reshape(-1, 1, 1, 1)
        x = (1 - time) * x0 + time * x1
        scale = ((1 - time) ** 2 * 0.25 + time**2).sqrt()
        return float((Watched()(x / scale, t, y) - (x1 - x0)).square().mean())

    assert float(loss) == pytest.approx(by_hand(given.x, x1, y), rel=1e-4)
    assert 0 < int(hidden.sum()) < N
    if coupling != "independent":
        order = (x1.flatten(1)[:, None] == noise.flatten(1)[None]).all(2).float().argmax(0)  # of the data, by noise
        assert by_hand(given.x[order], noise, y[order]) != pytest.approx(float(loss), rel=1e-3), "t stays with a row"
        behind = by_hand(given.x, x1, y[order])
        assert abs(behind - float(loss)) > 1e-3 * float(loss)
    ((_, _, seen),) = net.calls
    assert torch.equal(seen, y)


def test_the_denoiser_s_loss_takes_the_noise_as_it_comes() -> None:
    method = build({"name": "denoiser"})
    assert method.pair is None
    assert build(FLOW).nets["denoiser"].predicts == "flow"
    with pytest.raises(ValueError, match="coupling"):
        build({"name": "denoiser", "coupling": "ot"})


def test_ot_pairs_are_shorter_in_every_batch() -> None:
    """What they are for: E|x1 - x0|^2, which is what a straight path's velocity has to explain, goes down."""
    method = build(FLOW | {"coupling": "ot"})
    x, y = method.data.batch(torch.arange(128))
    noise = torch.randn(x.shape, generator=rng.generator(0))

    def length(x1: Tensor) -> float:
        return float((x1 - x).square().mean())

    assert length(paired("ot", x, noise, y)) < length(paired("ot-per-class", x, noise, y)) < 0.99 * length(noise)


@pytest.mark.parametrize("coupling", ["independent", "ot"])
def test_a_flow_of_points_learns_them(tmp_path: Path, coupling: str) -> None:
    """Two dimensions, 400 steps: the drawn points have the data's moments, and lie on the ring of eight.

    The mean within 0.1 and the spread within 10 % (4,000 points of spread 1: their own errors are 0.016 and 1 %), which
    the standard normal draws of an untrained network have as well; these do not lie on the ring.
    """
    method = build(
        FLOW | {"coupling": coupling, "sigma_data": 1.0},
        "points:ring8",
        train={"steps": 400, "batch": 128, "checkpoint_every": 400},
        measure={"features": "identity", "n": 2000, "batch": 2000, "solver": "euler", "grid": "time", "steps": 20},
    )
    before = method._sampler({"denoiser": method.nets["denoiser"]})(2000, seed=0)
    run = Folder(tmp_path)
    try:
        state = loop.fit(
            method,
            train=method.recipe.train,
            average=Ema(half_life=4_000),
            seed=0,
            where=CPU,
            run=run,  # type: ignore[arg-type]
            stop=StopRequest(),
        )
    finally:
        run.log.close()
    drawn, data = method._sampler(state.averaged)(2000, seed=0), method.data.x

    def off(x: Tensor) -> float:
        return max(float((x.mean(0) - data.mean(0)).abs().max()), float((x.std(0) / data.std(0) - 1).abs().max()))

    assert off(drawn) < 0.1

    def beside(x: Tensor) -> float:
        return float((x.norm(dim=1) / data.norm(dim=1).mean() - 1).abs().median())

    assert beside(drawn) < 0.15
    assert beside(before) > 0.25


def test_the_export_says_what_the_network_is() -> None:
    method = build(FLOW | {"sigma_data": 0.7})
    denoiser = method.nets["denoiser"]
    assert isinstance(denoiser, Denoiser)
    randomise(denoiser, 0, 0.05)
    header = method.finish({"denoiser": denoiser}).exports["denoiser"].header
    assert header["predicts"] == "flow"
    assert header["process"]["name"] == "rectified-flow"
    assert header["sigma_data"] == 0.7
    assert header["label_dropout"] == 0.1
