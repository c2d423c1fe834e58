"""Grids of noise levels."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from gentk.errors import RecipeError
from gentk.processes import grids
from gentk.processes.process import ratio
from gentk.processes.schedules import VE, VP, Cosine, Discrete, RectifiedFlow
from gentk.recipe import schema

DDPM, STABLE = Discrete(), Discrete("scaled-linear", 0.00085, 0.012)
ANY = ("karras", "lambda", "exponential", "time")  # grids that every process has


@pytest.fixture(params=[VE(), VP(), Cosine(), RectifiedFlow(), Discrete()], ids=lambda p: p.name)
def process(request):
    """All of them: `discrete` too, whose derivatives jump, which the tests of solvers and their orders do without."""
    return request.param


def section(name, **keys):
    return TypeAdapter(schema.Grid).validate_python({"name": name, **keys})


def ends(process):
    return ratio(process, torch.tensor([process.t_min, process.t_max], dtype=torch.float64)).tolist()


@pytest.mark.parametrize("n", [1, 2, 18])
def test_every_grid_decreases_from_the_top_to_zero(process, n):
    made = {
        "karras": grids.karras(n, 0.002, 80.0, 7.0),
        "lambda": grids.uniform_lambda(n, 0.002, 80.0),
        "t": grids.uniform_t(n, process),
    }
    for name, grid in made.items():
        assert grid.shape == (n + 1,)
        assert grid.dtype == torch.float64
        assert (grid[1:] < grid[:-1]).all()
        assert grid[-1] == 0
        if name != "t":
            assert grid[0] == 80
            assert n == 1 or grid[-2].item() == pytest.approx(0.002, rel=1e-12)


def test_karras_is_uniform_in_the_root_of_sigma():
    grid = grids.karras(18, 0.002, 80.0, 7.0)[:-1]
    torch.testing.assert_close((grid ** (1 / 7)).diff().diff(), torch.zeros(16).double(), rtol=0, atol=1e-12)
    assert ((grid ** (1 / 6)).diff().diff().abs() > 1e-4).any()  # negative control: not with another exponent
    i, n, lo, hi = 5, 18, 0.002 ** (1 / 7), 80 ** (1 / 7)
    assert grid[i].item() == pytest.approx((hi + i / (n - 1) * (lo - hi)) ** 7, rel=1e-12)


def test_uniform_lambda_has_a_constant_ratio():
    grid = grids.uniform_lambda(12, 0.01, 10.0)[:-1]
    torch.testing.assert_close(grid.log().diff().diff(), torch.zeros(10).double(), rtol=0, atol=1e-12)


def test_uniform_t_is_uniform_in_time(process):
    times = grids.to_times(process, grids.uniform_t(10, process))
    want = torch.linspace(process.t_max, 0, 11, dtype=torch.float64)
    torch.testing.assert_close(times, want, rtol=1e-11, atol=1e-13)


def test_to_times_keeps_the_ratios_and_zero(process):
    grid = grids.karras(10, 0.002, 80.0, 7.0)
    times = grids.to_times(process, grid)
    assert times[-1] == 0
    assert times.dtype == torch.float64
    torch.testing.assert_close(ratio(process, times), grid, rtol=1e-10, atol=0)


def test_flow_starts_at_pure_noise():
    grid = grids.uniform_t(4, RectifiedFlow())
    assert grid[0] == torch.inf
    assert grids.to_times(RectifiedFlow(), grid).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_given_adds_the_zero_once():
    assert grids.given([4.0, 1.0]).tolist() == [4.0, 1.0, 0.0] == grids.given((4.0, 1.0, 0.0)).tolist()


@pytest.mark.parametrize("levels", [(), (0.0,), (1.0, 2.0), (1.0, 1.0), (2.0, -1.0), (float("nan"), 1.0)])
def test_given_refuses_what_does_not_decrease_to_zero(levels):
    with pytest.raises(RecipeError, match="do not decrease"):
        grids.given(levels)


@pytest.mark.parametrize("bad", [(0, 0.1, 1.0), (3, 0.0, 1.0), (3, 2.0, 1.0), (3, 1.0, 1.0)])
def test_impossible_grids_are_refused(bad):
    with pytest.raises(RecipeError, match="grid"):
        grids.karras(*bad, 7.0)
    with pytest.raises(RecipeError, match="grid"):
        grids.uniform_lambda(*bad)


def test_a_grid_above_the_process_is_refused():
    with pytest.raises(RecipeError, match="above 80, the largest of process `ve`"):
        grids.to_times(VE(), grids.karras(5, 0.002, 81.0, 7.0))
    with pytest.raises(RecipeError, match="largest of process `vp`"):
        grids.to_times(VP(), grids.karras(5, 0.002, 153.0, 7.0))
    grids.to_times(Cosine(), grids.karras(5, 0.002, 6000.0, 7.0))  # its own largest is 6366


# --- build: the grids of recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("to_zero", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 18])
@pytest.mark.parametrize("name", ANY)
def test_defaults_work_for_every_process(process, name, steps, to_zero):
    """Steps are counted alike with and without the step to 0, and the ends are the process's own within 0.002 to 80."""
    times = grids.build(section(name, to_zero=to_zero), steps, process)
    assert times.shape == (steps + 1,)
    assert times.dtype == torch.float64
    assert (times.diff() < 0).all()
    assert (times[-1] == 0) == to_zero
    levels = times[:-1] if to_zero else times
    assert levels.min() >= process.t_min
    assert levels.max() <= process.t_max
    low, high = ends(process)
    if name == "time":
        assert times[0] == process.t_max  # exactly: for `rectified-flow` the noise that alpha = 0 leaves
        assert len(levels) == 1 or levels[-1] == process.t_min
    else:
        assert ratio(process, levels[0]).item() == pytest.approx(min(high, 80), rel=1e-9)
        assert len(levels) == 1 or ratio(process, levels[-1]).item() == pytest.approx(max(low, 0.002), rel=1e-9)


def test_build_makes_what_the_named_functions_make(process):
    low, high = 0.05, 10.0
    for name, sigmas in {
        "karras": grids.karras(9, low, high, 7.0),
        "lambda": grids.uniform_lambda(9, low, high),
        "exponential": grids.uniform_lambda(9, low, high),
        "given": grids.karras(9, low, high, 7.0),
    }.items():
        keys = {"sigmas": tuple(sigmas.tolist())} if name == "given" else {"sigma_min": low, "sigma_max": high}
        want = grids.to_times(process, sigmas)
        assert torch.equal(grids.build(section(name, **keys), 9, process), want)
        if name != "given":
            assert torch.equal(grids.build(section(name, **keys, to_zero=False), 8, process), want[:-1])
    other = grids.build(section("karras", sigma_min=low, sigma_max=high, rho=3.0), 9, process)
    assert ratio(process, other[4]).item() == pytest.approx(((low ** (1 / 3) + high ** (1 / 3)) / 2) ** 3, rel=1e-9)


def test_one_end_may_be_left_to_the_process():
    times = grids.build(section("karras", sigma_max=20.0), 5, VE(0.01, 50.0))
    assert times[[0, -2]].tolist() == pytest.approx([20, 0.01], rel=1e-12)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_time_is_even_in_its_root(power):
    """SA-Solver's skip_order: N + 1 times from 1 to 1e-3 whose root t^(1/power) is even."""
    times = grids.build(section("time", power=power, t_min=1e-3, to_zero=False), 20, VP())
    assert times[[0, -1]].tolist() == [1, 1e-3]
    want = [(1 + i / 20 * (1e-3 ** (1 / power) - 1)) ** power for i in range(21)]
    torch.testing.assert_close(times, torch.tensor(want, dtype=torch.float64), rtol=1e-12, atol=0)
    wrong = [(1 + i / 20 * (1e-3 ** (1 / (power + 1)) - 1)) ** (power + 1) for i in range(21)]  # negative control
    assert (times - torch.tensor(wrong)).abs().max() > 0.01


@pytest.mark.parametrize("to_zero", [True, False])
def test_time_down_to_zero_itself(to_zero):
    grid = section("time", t_min=0.0, to_zero=to_zero)
    assert grids.build(grid, 4, RectifiedFlow()).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert grids.build(grid, 1, RectifiedFlow()).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "steps", "keys", "want"),
    [  # Lin et al. 2023 (arXiv:2305.08891), table 2: T = 1000, S = 10, there counted from 1 as times are
        ("linspace", 10, {}, [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1, 0]),
        ("leading", 10, {}, [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0]),
        ("trailing", 10, {}, [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        ("leading", 3, {"offset": 1}, [668, 335, 2, 0]),
        ("trailing", 1, {}, [1000, 0]),
        ("trailing", 3, {"to_zero": False}, [1000, 750, 500, 250]),
        ("linspace", 1, {"to_zero": False}, [1000, 1]),
        ("linspace", 1000, {}, list(range(1000, -1, -1))),
    ],
)
def test_timesteps(name, steps, keys, want):
    assert grids.build(section(name, **keys), steps, DDPM).tolist() == want


@pytest.mark.parametrize("name", ["leading", "trailing", "linspace"])
def test_timesteps_are_those_of_diffusers(name):
    """Its `trailing` has one timestep more, -1, where T / n rounds down: 61 is the first such number."""
    diffusers = pytest.importorskip("diffusers")
    offset = {"offset": 1} if name == "leading" else {}
    theirs = diffusers.DDIMScheduler(timestep_spacing=name, steps_offset=1)
    longer = 0
    for n in (*range(1 if name == "trailing" else 2, 101), *range(101, 1000, 31)):
        theirs.set_timesteps(n)
        want = theirs.timesteps.numpy()
        longer += len(want) - n
        ours = grids.build(section(name, **offset), n, DDPM)
        assert np.array_equal(ours[:-1].numpy() - 1, want[:n]), n
        assert all(k == -1 for k in want[n:])
    assert (longer > 0) == (name == "trailing")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own, with new numpy
@pytest.mark.parametrize("n", [2, 10, 27, 50])
@pytest.mark.parametrize(("name", "flag"), [("karras", "use_karras_sigmas"), ("exponential", "use_exponential_sigmas")])
def test_sigmas_are_those_of_diffusers(name, flag, n):
    """With the same ends to the two roundings to float32, 1.2e-7. Theirs differ: 1 - beta in float32 is wrong by up to
    2^-25, so that sigma_min^2 = beta / (1 - beta) at beta = 8.5e-4 is off by 3.5e-5 and sigma_min by half of that.
    """
    diffusers = pytest.importorskip("diffusers")
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    theirs = diffusers.EulerDiscreteScheduler(**betas, **{flag: True})
    theirs.set_timesteps(n)
    want = theirs.sigmas.double()
    low, high = want[-2].item(), want[0].item()
    made = {"karras": grids.karras(n, low, high, 7.0), "exponential": grids.uniform_lambda(n, low, high)}
    torch.testing.assert_close(made[name], want, rtol=1.2e-7, atol=0)
    ours = ratio(STABLE, grids.build(section(name), n, STABLE))
    torch.testing.assert_close(ours, want, rtol=1.8e-5, atol=0)
    if n > 2:  # negative control: the other grid, between the ends
        other = made["karras" if name == "exponential" else "exponential"]
        assert (other / want - 1)[:-1].abs().max() > 0.1


def test_a_list_is_taken_as_it_is(process):
    levels = [9.0, 1.5, 0.2]
    for sigmas, to_zero, want in (
        (levels, True, [*levels, 0]),
        (levels, False, levels),
        ([*levels, 0.0], False, [*levels, 0]),
    ):
        grid = section("given", sigmas=tuple(sigmas), to_zero=to_zero)
        times = grids.build(grid, len(want) - 1, process)
        assert ratio(process, times).tolist() == pytest.approx(want, rel=1e-9)
        with pytest.raises(RecipeError, match=f"makes {len(want) - 1} steps, not 7"):
            grids.build(grid, 7, process)


@pytest.mark.parametrize(
    ("process", "name", "keys", "words"),
    [
        (VP(5.0, 8.0), "karras", {"sigma_max": 80.0}, "noise level 80 is above 25.7709, the largest of process `vp`"),
        (VE(), "lambda", {"sigma_max": 81.0}, "noise level 81 is above 80, the largest"),
        (
            DDPM,
            "karras",
            {"sigma_min": 0.002},
            "noise level 0.002 is below 0.0100005, the smallest of process `discrete`",
        ),
        (VE(), "given", {"sigmas": (100.0, 3.0, 1.0)}, "noise level 100 is above 80"),
        (VE(), "given", {"sigmas": (10.0, 3.0, 1e-3)}, "noise level 0.001 is below 0.002"),
        (RectifiedFlow(), "time", {"t_max": 1.5}, "time 1.5 is above 1, the largest of process `rectified-flow`"),
        (VP(), "time", {"t_min": 1e-6}, "time 1e-06 is below 1e-05, the smallest"),
        (DDPM, "leading", {"offset": 400}, "time 1067 is above 1000"),
        (VE(), "trailing", {}, "`trailing` lists timesteps, which process `ve` does not have"),
        (RectifiedFlow(), "linspace", {}, "lists timesteps, which process `rectified-flow`"),
        (VE(), "given", {"sigmas": (1.0, 2.0, 0.5)}, "do not decrease"),
        (VE(), "given", {"sigmas": (1.0, 1.0, 0.5)}, "do not decrease"),
        (VE(0.01, 50.0), "karras", {"sigma_max": 0.005}, "noise levels from 0.005 down to 0.01"),
        (VE(0.01, 50.0), "time", {"t_max": 0.005}, "times from 0.005 down to 0.01"),
        (Discrete(steps=2), "trailing", {}, "two of 3 steps coincide"),
        (Discrete(steps=2), "linspace", {}, "two of 3 steps coincide"),
        (Discrete(steps=2), "leading", {}, "two of 3 steps coincide"),
    ],
)
def test_grids_that_the_process_cannot_have(process, name, keys, words):
    with pytest.raises(RecipeError) as fault:
        grids.build(section(name, **keys), 3, process)
    assert words in str(fault.value)
    assert fault.value.hint


def test_one_timestep_at_the_clean_end_is_refused():
    for name in ("leading", "linspace"):
        with pytest.raises(RecipeError, match=f"the only timestep of `{name}` is at the clean end"):
            grids.build(section(name), 1, DDPM)


@pytest.mark.parametrize("name", [*ANY, "trailing"])
@pytest.mark.parametrize("steps", [0, -3])
def test_a_grid_needs_a_step(name, steps):
    with pytest.raises(RecipeError, match=f"grid: {steps} steps"):
        grids.build(section(name), steps, DDPM)


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        ("karras", {"sigma_min": 2.0, "sigma_max": 1.0}, "sigma_min: 2 is not below sigma_max: 1"),
        ("time", {"t_min": 1.0, "t_max": 1.0}, "t_min: 1 is not below t_max: 1"),
        ("given", {"sigmas": (1.0, -1.0)}, "greater than or equal to 0"),
        ("given", {"sigmas": ()}, "at least 1 item"),
        ("karras", {"rho": 0.5}, "greater than or equal to 1"),
        ("leading", {"offset": -1}, "greater than or equal to 0"),
    ],
)
def test_sections_refuse_what_no_process_has(name, keys, words):
    with pytest.raises(ValidationError, match=words):
        section(name, **keys)


def test_limits_allow_for_rounding(process):
    """The process's own ends, written as a user would copy them from the header: to nine digits and more."""
    low, high = ends(process)
    high = min(high, 1e6)
    for factor in (1 - 1e-10, 1, 1 + 1e-10):
        grid = section("lambda", sigma_min=low * factor, sigma_max=high * factor)
        times = grids.build(grid, 4, process)
        assert all(process.t_min <= t <= process.t_max for t in times[:-1])
        assert all(t > u for t, u in pairwise(times))
