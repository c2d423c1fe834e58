"""Drawing and rounding: what every figure of a generative model is measured on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gentk import nets
from gentk.data import DataSet, to_uint8
from gentk.engine import generative
from gentk.engine.draw import starts
from gentk.engine.generative import Judge, Sampler, picture, rounded
from gentk.errors import RecipeError
from gentk.processes.denoiser import Denoiser
from gentk.processes.process import Process
from gentk.processes.schedules import VE, VP, Cosine, RectifiedFlow
from gentk.recipe import schema
from gentk.recipe.schema import Measure
from gentk.solvers import euler

CPU = torch.device("cpu")


def model(process: Process, classes: int = 0) -> Denoiser:
    """A denoiser of points with random weights."""
    torch.manual_seed(0)
    net = nets.build(schema.Mlp(name="mlp", width=16, blocks=1), shape=(2,), classes=classes)
    gen = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=gen))
    return Denoiser(net, process, "edm", 0.5).eval()


class Counting(nn.Module):
    """Counts what the network is asked."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        self.calls += 1
        out: Tensor = self.net(x, c_noise, cond)
        return out


PROCESSES = pytest.mark.parametrize("process", [VE(), VP(), Cosine(), RectifiedFlow()], ids=lambda p: p.name)


@PROCESSES
@pytest.mark.parametrize("once", [None, 2.5], ids=["many", "one"])
def test_sample_k_is_the_same_for_every_n_and_batch(process: Process, once: float | None) -> None:
    """Up to the rounding of matrix products of other sizes, which a random network amplifies to 1e-4 over its steps."""
    denoiser = model(process, 3)
    sampler = Sampler(denoiser, (2,), (0, 1, 2), CPU, steps=4, sigma_init=once)
    whole = sampler(11, seed=5)
    assert whole.shape == (11, 2)
    assert whole.dtype == torch.float32
    assert whole.isfinite().all()
    for n, batch in ((11, 3), (11, 1), (7, 7), (4, 500)):
        torch.testing.assert_close(sampler(n, seed=5, batch=batch), whole[:n], rtol=0, atol=1e-3)
    other = sampler(11, seed=6)
    assert (other - whole).abs().amax(1).min() > 1e-2, "the control: another seed, other samples"
    unlabelled = Sampler(denoiser, (2,), (), CPU, steps=4, sigma_init=once)(11, seed=5)
    assert (unlabelled - whole).abs().amax(1).min() > 1e-2, "the control: labels matter"


@pytest.mark.parametrize(("steps", "once", "nfe"), [(1, None, 1), (2, None, 3), (18, None, 35), (18, 2.5, 1)])
def test_nfe_is_what_the_network_is_asked(steps: int, once: float | None, nfe: int) -> None:
    denoiser = model(VE())
    denoiser.net = counter = Counting(denoiser.net)
    sampler = Sampler(denoiser, (2,), (), CPU, steps=steps, sigma_init=once)
    sampler(4, seed=0)
    assert counter.calls == sampler.nfe == nfe


@PROCESSES
def test_many_steps_reach_the_law_of_an_exact_denoiser(process: Process) -> None:
    """N(1, 0.5^2) in two dimensions from its exact denoiser: 40 Heun steps end within 4 standard errors, 2000 draws.

    The levels start at 80, where the noise is 80 / 0.5 times the data: what is lost by starting from pure noise, 1 / 80
    of the mean, is below the standard error of 0.011.
    """

    class Exact(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
            s = (4 * c_noise).exp()[:, None]
            return 1 + 0.25 / (0.25 + s**2) * (x * (0.25 + s**2).sqrt() - 1)

    drawn = Sampler(Denoiser(Exact(), process, "x0", 0.5), (2,), (), CPU, steps=40)(2000, seed=0)
    assert (drawn.mean() - 1).abs() < 4 * 0.5 / 4000**0.5
    assert (drawn.std() / 0.5 - 1).abs() < 4 / 8000**0.5


@PROCESSES
def test_a_recipe_s_measure_chooses_solver_and_grid(process: Process) -> None:
    """Euler on even times: one call each, from the process's last time down to 0. EDM's grid is another one."""
    denoiser = model(process)
    denoiser.net = counter = Counting(denoiser.net)
    measure = Measure(features="identity", solver="euler", grid="time", steps=5)
    sampler = Sampler.many(denoiser, (2,), (), CPU, measure)
    drawn = sampler(4, seed=0)
    assert counter.calls == sampler.nfe == 5
    x = starts(0, 0, 4, (2,)) * float(process.sigma(torch.tensor(process.t_max)))
    times = torch.linspace(process.t_max, 0, 6, dtype=torch.float64)
    with torch.no_grad():
        want = euler.solve(denoiser, process, x, times, torch.zeros_like)
    torch.testing.assert_close(drawn, want, rtol=1e-4, atol=1e-4)
    other = Sampler.many(denoiser, (2,), (), CPU, Measure(features="identity", solver="euler", steps=5))(4, seed=0)
    assert (other - drawn).abs().max() > 1e-3
    assert Sampler.many(denoiser, (2,), (), CPU, None).nfe == 35


def test_one_step_may_start_from_pure_noise() -> None:
    """A level without end, as a number or as a header writes it: the denoiser of a flow at t = 1."""
    denoiser = model(RectifiedFlow())
    with torch.no_grad():
        want = denoiser(starts(0, 0, 4, (2,)), torch.tensor(1.0, dtype=torch.float64))
    for once in (torch.inf, "inf"):
        sampler = Sampler(denoiser, (2,), (), CPU, sigma_init=once)  # type: ignore[arg-type]
        assert sampler.nfe == 1
        torch.testing.assert_close(sampler(4, seed=0), want, rtol=1e-5, atol=1e-5)
    with pytest.raises(RecipeError, match="above 80"):
        Sampler(model(VE()), (2,), (), CPU, sigma_init=torch.inf)(4, seed=0)


# --- rounding ---------------------------------------------------------------------------------------------------------


def test_rounded_images_are_those_of_a_file() -> None:
    """Values of bytes, nearest to what was drawn: half a step of 2/255 at most, ends clipped, nothing moved twice."""
    x = torch.linspace(-1, 1, 2001).reshape(1, 1, 3, 667)
    out = rounded(x)
    assert (out - x).abs().max() <= 1 / 255 + 1e-6
    steps = (out + 1) * 127.5
    assert (steps - steps.round()).abs().max() < 1e-4
    assert out.unique().numel() == 256
    assert torch.equal(rounded(out), out)
    assert torch.equal(rounded(torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2)).flatten(), torch.tensor([-1.0, 1.0]))


def test_every_byte_survives_the_way_there_and_back() -> None:
    data = DataSet("d", "train", torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16), None, 0, "image")
    x, _ = data.batch(torch.tensor([0]))
    assert torch.equal(rounded(x), x)
    assert torch.equal(to_uint8(x), data.x)


def test_points_are_not_rounded() -> None:
    x = torch.linspace(-9, 9, 20).reshape(10, 2)
    assert rounded(x) is x


# --- figures ----------------------------------------------------------------------------------------------------------


def _splits() -> tuple[DataSet, DataSet]:
    gen = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (80, 1, 4, 4), generator=gen, dtype=torch.uint8)
    return tuple(  # type: ignore[return-value]
        DataSet("noise", split, x, None, 0, "image") for split, x in (("train", images[:60]), ("test", images[60:]))
    )


class Fixed:
    """A sampler that gives what it is told to: the float32 values of a set, a little off the bytes."""

    nfe = 3

    def __init__(self, x: Tensor, off: float) -> None:
        self.x, self.off, self.asked = x, off, []  # type: ignore[var-annotated]

    def __call__(self, n: int, seed: int, *, batch: int = 500) -> Tensor:
        self.asked.append((n, seed, batch))
        return self.x[:n] + self.off


def test_the_judge_measures_the_file_not_the_float() -> None:
    """Images off by less than half a byte are the training set itself; a whole byte is not."""
    train, test = _splits()
    x = train.batch(torch.arange(60))[0]
    judge = Judge(Measure(n=60, features="identity", batch=16, preview=60), train, test, CPU)
    near, far = Fixed(x, 0.4 / 127.5), Fixed(x, -1.0 / 127.5)
    figures = judge(near, 7)  # type: ignore[arg-type]
    assert near.asked == [(60, 7, 16)]
    assert figures["fd"] < 1e-9
    assert figures["nearest"] == 0
    assert figures["nfe"] == 3
    assert figures["ms_per_sample"] > 0
    assert judge.glance(near, 7)["fd"] < 1e-9  # type: ignore[arg-type]
    assert judge(far, 7)["nearest"] > 0  # type: ignore[arg-type]


def test_a_preview_of_no_samples_draws_none() -> None:
    train, test = _splits()
    sampler = Fixed(train.batch(torch.arange(60))[0], 0.0)
    assert Judge(Measure(n=60, features="identity"), train, test, CPU).glance(sampler, 0) == {}  # type: ignore[arg-type]
    assert sampler.asked == []


def test_pictures_by_kind_and_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """One panel is a grid, two stand side by side, points make one scatter plot of all."""
    called: list[str] = []
    for name in ("grid", "side_by_side", "scatter"):
        monkeypatch.setattr(generative.pictures, name, lambda *a, name=name: called.append(name))
    images, dots = torch.zeros(4, 1, 8, 8), torch.zeros(4, 2)
    for groups in ({"a": images}, {"a": images, "b": images}, {"a": dots}, {"a": dots, "b": dots}):
        picture(groups)
    assert called == ["grid", "side_by_side", "scatter", "scatter"]
