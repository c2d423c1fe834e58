"""The ball: projections against their definition, steepest steps, starts, and the check that files go through."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gentk.attacks.ball import Ball, Norm
from gentk.attacks.victim import Tape
from gentk.errors import RecipeError, RunFailed

GEN = torch.Generator().manual_seed(0)
X = torch.rand(200, 2, 4, 4, generator=GEN)
FAR = X + 2 * torch.randn(X.shape, generator=GEN)
NORMS: list[Norm] = ["linf", "l2"]


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_in_the_ball_and_moves_nothing_inside(norm: Norm) -> None:
    ball = Ball(norm, 0.3)
    found = ball.project(FAR, X)
    assert float(ball.distance(found, X).max()) <= 0.3 + 1e-6
    assert float(found.min()) >= 0
    assert float(found.max()) <= 1
    torch.testing.assert_close(ball.project(found, X), found, atol=1e-6, rtol=0)
    ball.check(found, X, torch.arange(200), "test")


def test_linf_projection_is_the_nearest_point() -> None:
    """Coordinates do not touch each other: the nearest point of each interval, found by search."""
    found = Ball("linf", 0.3).project(FAR[:3], X[:3]).flatten()
    for f, x, got in zip(FAR[:3].flatten().tolist(), X[:3].flatten().tolist(), found.tolist(), strict=True):
        low, high = max(0.0, x - 0.3), min(1.0, x + 0.3)
        assert got == pytest.approx(min(max(f, low), high), abs=1e-6)


def test_l2_projection_within_the_box_is_along_the_ray() -> None:
    x = torch.full((1, 1, 4, 4), 0.5)
    far = x + torch.randn(x.shape, generator=GEN)
    found = Ball("l2", 0.2).project(far, x)
    ray = (far - x) / (far - x).norm()
    torch.testing.assert_close(found, x + 0.2 * ray, atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_ascent_is_the_steepest_step_of_its_norm(norm: Norm) -> None:
    """No other step of the same size gains more along the gradient: dual norms, and random rivals."""
    g = torch.randn(1, 2, 4, 4, generator=GEN)
    x = torch.zeros_like(g)
    step = Ball(norm, 1.0).ascend(x, g, 0.1)
    assert float(Ball(norm, 1.0).distance(step, x)[0]) == pytest.approx(0.1, rel=1e-6)
    dual = g.abs().sum() if norm == "linf" else g.norm()
    assert float((step * g).sum()) == pytest.approx(0.1 * float(dual), rel=1e-5)
    assert torch.equal(Ball(norm, 1.0).ascend(x, torch.zeros_like(g), 0.1), x)  # nor NaN


@pytest.mark.parametrize("norm", NORMS)
def test_start_is_even_in_the_ball(norm: Norm) -> None:
    x = torch.full((4000, 1, 2, 2), 0.5)
    ball, tape = Ball(norm, 0.4), Tape.of(torch.arange(4000), 0)
    start = ball.start(x, tape)
    far = ball.distance(start, x)
    assert float(far.max()) <= 0.4 + 1e-6
    # P(distance <= r) = (r / eps)^d in d dimensions: the mean distance is d / (d + 1), here 4 / 5 of eps
    error = 0.4 * math.sqrt(4 / 6 - (4 / 5) ** 2) / math.sqrt(4000)
    assert float(far.mean()) == pytest.approx(0.4 * 4 / 5, abs=4 * error)
    assert float((start - x).mean()) == pytest.approx(0, abs=0.01)
    assert torch.equal(ball.start(x[5:7], tape[5:7]), start[5:7])


@pytest.mark.parametrize(
    ("norm", "eps"), [("linf", 8.0), ("linf", 1.01), ("l2", -0.1), ("l2", math.nan), ("l2", math.inf)]
)
def test_eps_in_bytes_is_refused(norm: Norm, eps: float) -> None:
    with pytest.raises(RecipeError) as e:
        Ball(norm, eps)
    assert "8/255" in e.value.hint
    Ball("l2", 3.0)  # the root of a sum over pixels may be above 1


def _beyond(x: Tensor) -> Tensor:
    out = x.clone()
    out[3, 0, 0, 0] += 0.011 if x[3, 0, 0, 0] < 0.9 else -0.011
    return out


@pytest.mark.parametrize("norm", NORMS)
def test_check_names_the_image(norm: Norm) -> None:
    ball = Ball(norm, 0.01)
    with pytest.raises(RunFailed, match="image 103 is outside of the threat"):
        ball.check(_beyond(X), X, torch.arange(100, 300), "test")
    with pytest.raises(RunFailed, match="image 0"):
        ball.check(torch.full_like(X, math.nan), X, torch.arange(200), "test")
    near = torch.full((1, 1, 2, 2), 1.0)
    with pytest.raises(RunFailed, match="values"):
        ball.check(near + 0.005, near, torch.arange(1), "test")


def test_truncated_bytes_leave_the_ball() -> None:
    """Trap 15: what an image writer does to an attacked image."""
    ball = Ball("linf", 0.2)
    attacked = ball.project(X + 0.2 * torch.randn(X.shape, generator=GEN).sign(), X)
    ball.check(attacked, X, torch.arange(200), "float32")
    truncated = (attacked * 255).to(torch.uint8).float() / 255
    assert float(ball.distance(truncated, X).max()) == pytest.approx(0.2 + 1 / 255, abs=2e-4)
    with pytest.raises(RunFailed, match="outside"):
        ball.check(truncated, X, torch.arange(200), "bytes")
